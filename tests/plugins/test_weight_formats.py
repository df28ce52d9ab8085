"""Each format of a weight: what is stored, what is meant, its product and its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.int4_linear import pack_halves, quantize_groups, unpack_halves
from opsin_plugins.blocks.weight_formats import FORMATS, Dense, Int4Groups, Int8Rows
from opsin_plugins.blocks.weight_policy import WeightPolicy


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
    steps = {"dense": 0.0, "int8": 1 / 127, "int4": 1 / 15}  # of a row's, or a group's, largest value
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
    held = held.half() if form != "int8" else held
    out = held.matmul(x.half())
    assert out.dtype == torch.float16
    assert torch.allclose(out.float(), x @ meant.T, rtol=0.01)


@given(st.integers(1, 5), st.sampled_from([32, 64, 128]), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_four_bits_a_group_are_rounded_to_the_nearest_code(rows: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 2 * group, generator=generator) * torch.rand((), generator=generator)
    weight[0, :group] = 0  # a group of nothing
    packed, _, _ = quantize_groups(weight, group)
    assert packed.shape == (rows, group)
    held = Int4Groups(2 * group, rows)
    held.fill(0, weight)
    meant = held.dequantized().unflatten(1, (-1, held.group))
    step = held.scale[..., None]
    error = (meant - weight.unflatten(1, (-1, held.group))).abs()
    assert bool((error <= step * 0.501 + 1e-6).all()) or held.group != group
    assert bool((meant[weight.unflatten(1, (-1, held.group)) == 0] == 0).all()), "0 is met exactly"


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_two_codes_share_a_byte_half_a_group_apart(codes: list[int]) -> None:
    packed = pack_halves(torch.tensor(codes, dtype=torch.uint8))
    assert packed.tolist() == [codes[i] + 16 * codes[i + 4] for i in range(4)]
    assert unpack_halves(packed).tolist() == codes


def test_bytes_are_those_of_all_tensors() -> None:
    assert Dense(128, 8).bytes == 128 * 8 * 4
    assert Int8Rows(128, 8).bytes == 128 * 8 + 8 * 4
    assert Int4Groups(128, 8).bytes == 64 * 8 + 8 * (4 + 1)


def test_the_policy_keeps_what_rounding_would_harm_most() -> None:
    policy = WeightPolicy("int4")
    paths = [
        "vision.layers.0.mlp.up",
        "projector.mlp",
        "decoder.head",
        "decoder.layers.0.mlp.down",
        "fusion.cross.3.mlp.down",
    ]
    assert [policy.choose(path, 128, 64).name for path in paths] == ["dense", "dense", "dense", "int4", "int4"]
    assert policy.choose("decoder.layers.0.mlp.down", 100, 64) is Dense, "no group divides it"
    assert policy.describe("bfloat16") == "int4 decoder; bfloat16 vision tower, projector, output head"
    assert WeightPolicy().describe("float32") == "float32"
