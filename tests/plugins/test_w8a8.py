"""Weights of 8 bits that meet activations of 8 bits: which they are, what they give, and their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs

from opsin_kernels.row_codes import RowCodes, quantize_rows
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.stored_bytes import stored_bytes
from opsin_plugins.blocks.weight_formats import Groups, form_of
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.quantized.compressed_tensors import _activations
from opsin_plugins.spec import CodeForm
from support import oracle, packers, quantized_checks, tiny

BOTH = frozenset({"int8", "fp8"})
ALWAYS = ActivationPolicy(BOTH, always=True)
FORMS = [
    CodeForm("int8", 256, activations=True),
    CodeForm("int8", 128, activations=True),
    CodeForm("fp8", 256, activations=True),
    CodeForm("fp8", 64, activations=True),
]


def held(form: CodeForm) -> Groups:
    torch.manual_seed(0)
    made, weight = form_of(form)(256, 12), torch.randn(12, 256)
    assert isinstance(made, Groups)
    found = made._quantize(weight.view(-1, form.group))
    made.fill(0, Codes(form, found.codes.view(12, 256), found.scale.view(12, -1)))
    return made


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_product_is_that_of_the_rows_that_are_meant(form: CodeForm) -> None:
    """To float32's rounding; and its gradient goes past the rounding of the rows."""
    made, x = held(form), torch.randn(5, 256, requires_grad=True)
    assert made.row_kind is not None
    rows = quantize_rows(x.detach(), made.row_kind)
    out = made.matmul(x, torch.ones(12))
    assert torch.allclose(out, rows.dequantized() @ made.dequantized().T + 1, rtol=1e-5, atol=1e-4)
    assert torch.equal(out, made.matmul_codes(rows, torch.ones(12)))
    assert not torch.allclose(out, x @ made.dequantized().T + 1, atol=1e-3), "rows were rounded"
    gradient = torch.randn(5, 12)
    out.backward(gradient)
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient @ made.dequantized(), rtol=1e-5, atol=1e-4)
    assert made.native() is None, "C would not round rows"


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_codes_of_a_row_are_its_nearest_numbers(kind: torch.dtype) -> None:
    x = torch.randn(3, 64)
    x[1], x[2, 0] = 0, 1e4
    rows = quantize_rows(x, kind)
    steps = rows.scale if kind == torch.int8 else torch.maximum(x.abs() / 8, rows.scale * 2.0**-9)
    assert ((rows.dequantized() - x).abs() <= 0.5001 * steps).all()
    assert (rows.codes[1].float() == 0).all()
    assert torch.equal(rows.codes[2:].float(), quantize_rows(x[2:], kind).codes.float()), "on its own"


def test_the_policy_takes_what_is_declared_and_can_be_multiplied() -> None:
    declared, plain = CodeForm("int8", 256, activations=True), CodeForm("int8", 256)
    path, count = "decoder.layers.0.mlp.down", 8

    def kinds(policy: ActivationPolicy, form: CodeForm, where: str = path) -> torch.dtype | None:
        return (
            WeightPolicy(declared={where: [(count, form)]}, activations=policy).choose(where, 256, 8)(256, 8).row_kind
        )

    assert kinds(ActivationPolicy(), declared) is None
    assert kinds(ActivationPolicy(BOTH), declared) == torch.int8
    assert kinds(ActivationPolicy(frozenset({"fp8"})), declared) is None
    assert kinds(ActivationPolicy(BOTH), plain) is None
    assert kinds(ALWAYS, plain) == torch.int8
    assert kinds(ALWAYS, plain, "decoder.head") is None
    for other in (
        CodeForm("int8", 256, offset=True),
        CodeForm("int8", 128, ordered=True),
        CodeForm("int8", 32),
        CodeForm("int4", 128, offset=True),
    ):
        assert kinds(ALWAYS, other) is None


def test_what_is_quantized_on_the_spot_only_where_it_is_wanted() -> None:
    for name, kind in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn), ("int4", None)):
        for policy, wanted in ((ActivationPolicy(BOTH), None), (ALWAYS, kind)):
            found = WeightPolicy(name, activations=policy)
            assert found.choose("decoder.layers.0.mlp.up", 128, 8)(128, 8).row_kind == wanted
            assert found.choose("decoder.embedding", 128, 8, tied=True)(128, 8).row_kind is None
            assert found.choose("decoder.head", 128, 8)(128, 8).row_kind is None


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_norms_and_gates_hand_on_codes_of_the_same_rows(form: str, tmp_path: Path) -> None:
    """Logits are the same to the bit whether operations before a linear quantize for it, or it does so itself (as where
    a gradient is wanted)."""
    ours = oracle.saved(tiny.qwen2_vl(), tmp_path, policy=WeightPolicy(form, activations=ALWAYS))
    assert f"{form} w8a8" in stored_bytes(ours.model)
    asked = oracle.prompt(ours, [5, 6, tiny.IMAGE_TOKEN, 7, 8, 9], [oracle.picture(0, 40, 30)])
    seen: list[bool] = []
    for linear in ours.model.decoder.layers["0"].mlp.gate_up, ours.model.decoder.layers["0"].mlp.down:
        linear.register_forward_pre_hook(lambda module, given: seen.append(isinstance(given[0], RowCodes)))
    with torch.no_grad():
        (handed,) = oracle.our_logits(ours, [asked])
    assert seen == [True, True]
    with torch.enable_grad():
        (alone,) = oracle.our_logits(ours, [asked])
    assert seen == [True, True, False, False]
    assert torch.equal(handed, alone.detach())


def test_what_checkpoints_declare() -> None:
    def declared(**how: object) -> str:
        return _activations(QuantizationArgs(**{"num_bits": 8, "dynamic": True} | how).model_dump())

    assert declared(type="int", symmetric=True, strategy="token") == "int8"
    assert declared(type="int", symmetric=True, strategy="tensor", dynamic=False) == "int8"
    assert declared(type="float", symmetric=True, strategy="tensor", dynamic=False) == "fp8"
    assert declared(type="int", symmetric=False, strategy="token") == "", "zero points are not computed with"
    assert declared(type="int", symmetric=True, strategy="token", num_bits=4) == ""
    assert _activations({}) == ""


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, True),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, True),
        ({"quant_method": "fp8"}, False),
    ],
)
def test_fp8_declares_its_activations(config: dict, wanted: bool, tmp_path: Path) -> None:
    model, block = quantized_checks.tiny(), (128, 128)
    scale = "weight_scale_inv" if "weight_block_size" in config else "weight_scale"
    pack = (
        (lambda name, weight: packers.fp8_blocks(weight, block, scale))
        if scale.endswith("inv")
        else (lambda name, weight: packers.fp8_blocks(weight, (1, weight.shape[1]), scale))
    )
    quantized_checks.saved(model, tmp_path, config, pack)
    forms = {t.packing.form for t in open_model(tmp_path).files.tensors.values() if t.packing is not None}
    assert {form.activations for form in forms if form is not None} == {wanted}
