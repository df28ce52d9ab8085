"""Checkpoints that are packed as people's tools pack them: logits of the weights that they mean, from their codes."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor

from support import packers
from support.packers import PackedWeight
from support.quantized_checks import check, saved, tiny


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("ordered", [False, True], ids=["", "act-order"])
def test_gptq(tmp_path: Path, bits: int, group: int, ordered: bool) -> None:
    """With act-order each published layer of a fused linear has an order of its own."""
    model = tiny()
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered, "sym": False}
    saved(model, tmp_path, config, lambda name, weight: packers.gptq(weight, group, bits, ordered))
    check(model, tmp_path, 5 if bits == 4 else 3)


def test_gptq_of_version_2_and_layers_with_numbers_of_their_own(tmp_path: Path) -> None:
    model = tiny()
    dynamic = {"+:.*down_proj": {"bits": 8, "group_size": 32}, "-:.*o_proj": {}}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2", "dynamic": dynamic}

    def pack(name: str, weight: Tensor) -> PackedWeight | None:
        if name.endswith("o_proj"):
            return None
        wide = name.endswith("down_proj")
        return packers.gptq(weight, 32 if wide else 64, 8 if wide else 4, version=2)

    saved(model, tmp_path, config, pack)
    check(model, tmp_path, 2)


@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_awq(tmp_path: Path, group: int) -> None:
    model = tiny()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    saved(model, tmp_path, config, lambda name, weight: packers.awq(weight, group))
    check(model, tmp_path, 5)


@pytest.mark.parametrize(("hidden", "mlp", "group"), [(200, 328, 128), (136, 264, 64), (72, 200, 32)])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_odd_sizes_are_floats_again(tmp_path: Path, hidden: int, mlp: int, group: int, method: str) -> None:
    """No group of ours divides these: the numbers are those that the checkpoint means."""
    model = tiny(hidden, mlp, head_dim=32)
    pack = getattr(packers, method)
    config = {"quant_method": method, "bits": 4, "group_size": group}
    saved(model, tmp_path, config, lambda name, weight: pack(weight, group))
    check(model, tmp_path, 0.5)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize(("hidden", "least"), [(256, 5), (120, 0.5)])
def test_bitsandbytes_4_bit(tmp_path: Path, kind: str, nested: bool, hidden: int, least: float) -> None:
    """By the library itself."""
    model = tiny(hidden, head_dim=32)

    def pack(name: str, weight: Tensor) -> PackedWeight:
        codes, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
        parts = {f"weight.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
        return PackedWeight({"weight": codes, **parts}, bnb.functional.dequantize_4bit(codes, state))

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    saved(model, tmp_path, config, pack)
    check(model, tmp_path, least)


def test_bitsandbytes_8_bit(tmp_path: Path) -> None:
    model = tiny()

    def pack(name: str, weight: Tensor) -> PackedWeight:
        codes, absmax, _ = bnb.functional.int8_vectorwise_quant(weight.half())
        meant = codes.float() * absmax[:, None] / 127
        return PackedWeight(
            {"weight": codes, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}, meant
        )

    saved(model, tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True}, pack)
    check(model, tmp_path, 3)


@pytest.mark.parametrize("block", [(128, 128), (64, 32), (48, 96)])
def test_fine_grained_fp8(tmp_path: Path, block: tuple[int, int]) -> None:
    model = tiny()
    config = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    saved(model, tmp_path, config, lambda name, weight: packers.fp8_blocks(weight, block))
    check(model, tmp_path, 3 if block != (48, 96) else 0.5)


@pytest.mark.parametrize("form", ["()", "(1,)", "(N,)", "(N, 1)"])
def test_fp8_with_a_scale_a_tensor_or_a_row(tmp_path: Path, form: str) -> None:
    model = tiny()

    def pack(name: str, weight: Tensor) -> PackedWeight:
        whole = form in ("()", "(1,)")
        found = packers.fp8_blocks(weight, (len(weight) if whole else 1, weight.shape[1]), "weight_scale")
        scale = found.tensors["weight_scale"]
        shape = {"()": (), "(1,)": (1,), "(N,)": (len(weight),), "(N, 1)": (len(weight), 1)}[form]
        parts = {"weight_scale": scale.reshape(shape), "input_scale": torch.ones(1)}
        return PackedWeight(found.tensors | parts, found.meant)

    saved(model, tmp_path, {"quant_method": "fp8", "activation_scheme": "static"}, pack)
    check(model, tmp_path, 3)
