"""Each format of a weight: what is stored, what is meant, its product and its gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.int4_linear import pack_groups, quantize_groups, unpack_groups
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.segmented import Segmented
from opsin_plugins.blocks.weight_format import Dense, Half, WeightFormat
from opsin_plugins.blocks.weight_formats import FORMATS, Int4Groups, Int8Groups, form_of
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.spec import CodeForm

CODES = [
    CodeForm("int4", 32, offset=True),
    CodeForm("int4", 64, offset=True, ordered=True),
    CodeForm("int8", 16),
    CodeForm("int8", 32, offset=True),
    CodeForm("int8", 128, ordered=True),
    CodeForm("int8", 128),
    CodeForm("fp8", 64),
    CodeForm("table4", 32),
]


def codes_of(form: CodeForm, rows: int, inputs: int) -> Codes:
    """Made up."""
    low, high = (-128, 128) if form.codes == "int8" else (0, 16)
    codes = torch.randint(low, high, (rows, inputs), dtype=torch.int8 if low else torch.uint8)
    if form.codes == "fp8":
        codes = torch.randn(rows, inputs).to(torch.float8_e4m3fn)
    scale, offset = torch.rand(rows, inputs // form.group), torch.randn(rows, inputs // form.group)
    order = torch.randperm(inputs) if form.ordered else None
    table = torch.randn(16) if form.codes == "table4" else None
    return Codes(form, codes, scale, offset if form.offset else None, order, table)


def check(held: WeightFormat, meant: torch.Tensor) -> None:
    assert torch.allclose(held.dequantized(), meant, atol=1e-5)
    x = torch.randn(5, held.inputs, requires_grad=True)
    out = held.matmul(x, torch.ones(held.outputs))
    assert torch.allclose(out, x @ meant.T + 1, rtol=1e-4, atol=1e-2)
    gradient = torch.randn(5, held.outputs)
    out.backward(gradient)
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient @ meant, rtol=1e-4, atol=1e-2)
    assert torch.allclose(held.input_gradient(gradient), x.grad, rtol=1e-4, atol=1e-2)
    ids = torch.tensor([3, 0, 3])
    assert torch.equal(held.rows(ids), held.dequantized()[ids])


@pytest.mark.parametrize("form", CODES, ids=str)
def test_codes_of_a_checkpoint_are_kept_as_they_are(form: CodeForm) -> None:
    torch.manual_seed(0)
    codes = codes_of(form, 12, 256)
    held = form_of(form)(256, 12)
    held.fill(0, codes.of_rows(lambda rows: rows[:5]))
    held.fill(5, codes.of_rows(lambda rows: rows[5:]))
    check(held, codes.dequantized())
    dense = Dense(256, 12)
    dense.fill(0, codes)
    assert torch.equal(dense.weight, codes.dequantized())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_kept_in_a_model_of_32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    meant, held = torch.randn(12, 256).to(dtype), Half(256, 12, dtype)
    held.fill(0, meant[:5])
    held.fill(5, meant[5:])
    check(held, meant.float())
    assert held.bytes == meant.nbytes


def test_copies_have_weights_of_their_own() -> None:
    held = Dense(32, 16)
    held.fill(0, torch.ones(16, 32))
    x = torch.ones(1, 32)
    before = held.matmul(x)
    copied = copy.deepcopy(held)
    held.fill(0, torch.zeros(16, 32))
    assert torch.equal(copied.matmul(x), before)
    assert not held.matmul(x).any()


def test_rows_of_one_linear_may_be_stored_in_several_ways() -> None:
    torch.manual_seed(0)
    parts = [codes_of(form, 4, 256) for form in CODES]
    floats = torch.randn(3, 256)
    held = Segmented(256, 4 * len(parts) + 3, [(4, form_of(form)) for form in CODES] + [(3, Dense)])
    for i, codes in enumerate(parts):
        held.fill(4 * i, codes)
    held.fill(4 * len(parts), floats)
    check(held, torch.cat([*(codes.dequantized() for codes in parts), floats]))


def test_small_groups_of_a_16_bit_model_have_16_bit_scales() -> None:
    form = CodeForm("int4", 32, offset=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert form_of(form)(256, 8).bytes == 128 * 8 + 2 * 2 * 8 * 8
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("inputs", [32, 96, 256])
def test_product_and_gradient_are_those_of_the_weight_that_is_meant(form: str, inputs: int) -> None:
    torch.manual_seed(0)
    held, weight = FORMATS[form](inputs, 21), torch.randn(21, inputs)
    held.fill(0, weight[:8])
    held.fill(8, weight[8:])
    meant = held.dequantized()
    x = torch.randn(5, inputs, requires_grad=True)
    out = held.matmul(x)
    assert torch.allclose(out, x @ meant.T, atol=1e-4)
    gradient = torch.randn(5, 21)
    out.backward(gradient)
    assert torch.allclose(x.grad, gradient @ meant, atol=1e-4)
    assert torch.allclose(held.input_gradient(gradient), gradient @ meant, atol=1e-4)
    steps = {"dense": 0.0, "int8": 1 / 127, "int4": 1 / 15, "fp8": 1 / 16}  # of a row's, or a group's, largest value
    assert (meant - weight).abs().max() <= steps[form] * weight.abs().max()


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_sum_that_fits_16_bit_is_not_lost_on_the_way(form: str) -> None:
    """Codes up to 127 times a large activation do not fit, though what they mean does."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 2048) * 0.02, torch.zeros(1, 2048)
    weight[:, 0], x[0, 0] = 0.09, 800.0
    held = FORMATS[form](2048, 4)
    held.fill(0, weight)
    meant = held.dequantized().clone()
    held = held.half() if form in ("dense", "int4") else held
    out = held.matmul(x.half())
    assert out.dtype == torch.float16
    assert torch.allclose(out.float(), x @ meant.T, rtol=0.01)


@given(st.integers(1, 5), st.sampled_from([32, 64, 128]), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_four_bits_a_group_are_rounded_to_the_nearest_code(rows: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 2 * group, generator=generator) * torch.rand((), generator=generator)
    weight[0, :group] = 0  # a group of nothing
    codes, _, _ = quantize_groups(weight, group)
    assert int(codes.max()) <= 15
    held = Int4Groups(2 * group, rows)
    held.fill(0, weight)
    size = held.form.group
    meant = held.dequantized().unflatten(1, (-1, size))
    step = held.scale[..., None]
    error = (meant - weight.unflatten(1, (-1, size))).abs()
    assert bool((error <= step * 0.501 + 1e-6).all()) or size != group
    assert bool((meant[weight.unflatten(1, (-1, size)) == 0] == 0).all()), "0 is met exactly"


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_two_codes_share_a_byte_half_a_group_apart(codes: list[int]) -> None:
    packed = pack_groups(torch.tensor([codes], dtype=torch.uint8), 8)
    assert packed.tolist() == [[codes[i] + 16 * codes[i + 4] for i in range(4)]]
    assert unpack_groups(packed, 1).tolist() == [[codes]]


def test_bytes_are_those_of_all_tensors() -> None:
    assert Dense(128, 8).bytes == 128 * 8 * 4
    assert Int8Groups(128, 8).bytes == 128 * 8 + 8 * 4
    assert Int4Groups(128, 8).bytes == 64 * 8 + 8 * (4 + 4)


@pytest.mark.parametrize(
    ("policy", "formats"),
    [
        (WeightPolicy(), ["dense"] * 7),
        (WeightPolicy("int4"), ["dense", "dense", "int8", "dense", "int8", "int4", "int4"]),
        (WeightPolicy("int8", vision=True), ["int8", "int8", "int8", "dense", "int8", "int8", "int8"]),
    ],
)
def test_the_policy_keeps_what_rounding_would_harm_most(policy: WeightPolicy, formats: list[str]) -> None:
    paths = {
        "vision.layers.0.mlp.up": False,
        "projector.mlp": False,
        "decoder.head": False,
        "decoder.embedding": False,
        "decoder.embedding ": True,  # tied
        "decoder.layers.0.mlp.down": False,
        "fusion.cross.3.mlp.down": False,
    }
    found = [policy.choose(path.strip(), 128, 64, tied=tied)(128, 64).name for path, tied in paths.items()]
    assert found == formats
    assert policy.choose("decoder.layers.0.mlp.down", 100, 64)(100, 64).name != "int4", "no group divides it"
