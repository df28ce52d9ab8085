"""Norms, gated activations and the rotary write against their definitions; NaN stands around what may be read."""

from __future__ import annotations

import pytest
import torch

from opsin_kernels import activations, kv_rows, layer_norm, rotary
from opsin_kernels import rms_norm as norms
from opsin_kernels.gpu import activations as gpu_activations
from opsin_kernels.gpu import layer_norm as gpu_layer_norm
from opsin_kernels.gpu import rms_norm as gpu_norms
from opsin_kernels.gpu import rotary as gpu_rotary

TYPES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    assert a.dtype == b.dtype
    return torch.allclose(a.float(), b.float(), atol=TYPES[a.dtype], rtol=TYPES[a.dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("one_plus", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 192), (3, 1), (5, 129), (0, 8)])
def test_rms_norm(rows: int, width: int, one_plus: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(rows + width)
    wide = torch.full((rows, width + 7), torch.nan, dtype=dtype)  # a slice of a wider tensor
    wide[:, 3 : 3 + width] = torch.randn(rows, width)
    x, weight, floor = wide[:, 3 : 3 + width], torch.randn(width).to(dtype), torch.tensor(1e-5)
    assert close(gpu_norms.rms_norm(x, weight, floor, one_plus), norms.rms_norm_ref(x, weight, floor, one_plus))


def test_rms_norm_of_heads() -> None:
    x = torch.randn(4, 3, 24)[:, 1:]
    weight, floor = torch.randn(24), torch.tensor(1e-6)
    assert close(gpu_norms.rms_norm(x, weight, floor), norms.rms_norm_ref(x, weight, floor))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", list(activations.ACTIVATIONS))
@pytest.mark.parametrize("shape", [(1, 10), (3, 2, 700), (0, 6)])
def test_gated(shape: tuple[int, ...], activation: activations.Activation, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = (4 * torch.randn(shape)).to(dtype)
    assert close(gpu_activations.gated(x, activation), activations.gated_ref(x, activation))
    assert close(gpu_activations.activated(x, activation), activations.ACTIVATIONS[activation](x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 3, 32), (4, 2, 24), (2, 1, 80), (7, 1, 2)])
def test_turned_and_stored(heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    rows = 5
    tables = rotary.angles_to_tables(10 * torch.rand(rows, size // 2), dtype)
    qkv = torch.randn(rows, heads + 2 * kv_heads, size).to(dtype)
    slots = torch.randperm(12)[:rows]
    pools = [torch.full((3, 4, 2 * kv_heads, size), 7.0, dtype=dtype) for _ in range(2)]
    ours, theirs = qkv.clone(), qkv.clone()
    gpu_rotary.rotate_and_store(ours, heads, *tables, pools[0], slots)
    queries = rotary.rotate_and_store_ref(theirs, heads, *tables, pools[1], slots)
    assert close(ours[:, :heads], queries)
    assert close(pools[0], pools[1])
    assert (pools[0].view(12, -1)[[i for i in range(12) if i not in slots.tolist()]] == 7).all(), "nothing else changes"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", kv_rows.LARGEST)
@pytest.mark.parametrize("size", [32, 80, 4])
def test_turned_and_stored_in_8_bits(size: int, kind: torch.dtype, dtype: torch.dtype) -> None:
    """The definition's codes; where sums are rounded in another order, a neighbour's."""
    torch.manual_seed(size)
    tables = rotary.angles_to_tables(10 * torch.rand(6, size // 2), dtype)
    qkv = (torch.randn(6, 8, size) * 10.0 ** torch.arange(-3, 3)[:, None, None]).to(dtype)
    qkv[4, 6] = 0
    slots = torch.tensor([3, 0, 7, -1, 5, 2])
    pools = [torch.full((2, 4, 4, size + 4), 7, dtype=torch.int8).view(kind) for _ in range(2)]
    gpu_rotary.rotate_and_store(qkv.clone(), 4, *tables, pools[0], slots)
    there = slots >= 0
    rotary.rotate_and_store_ref(qkv[there].clone(), 4, *(t[there] for t in tables), pools[1], slots[there])
    ours, theirs = (pool.view(8, 4, size + 4) for pool in pools)
    assert torch.equal(ours[:, 2:].view(torch.int8), theirs[:, 2:].view(torch.int8)), "values are not turned"
    assert torch.allclose(*(kv_rows.scales_of(rows[slots[there], :2]) for rows in (ours, theirs)), rtol=1e-6, atol=0)
    codes = [rows[..., :size].view(torch.int8) for rows in (ours, theirs)]
    assert (codes[0].int() - codes[1].int()).abs().max() <= 1
    assert (codes[0] == codes[1]).float().mean() > 0.97
    assert (ours[[1, 4, 6]].view(torch.int8) == 7).all(), "nothing else changes"


@pytest.mark.parametrize("kind", kv_rows.LARGEST)
def test_every_number_gets_the_nearest_code(kind: torch.dtype) -> None:
    """Ties to even, subnormal numbers of float8, and both ends."""
    largest = kv_rows.LARGEST[kind]
    numbers = torch.cat(
        [torch.linspace(-largest, largest, 1001), torch.arange(-40, 41) / 1024, largest * torch.ones(22)]
    )
    rows = numbers.view(16, 1, 69)[..., :68].repeat(1, 3, 1)
    rows[..., 0] = largest  # so that the scale is 1
    pool, slots = torch.zeros(4, 4, 2, 72, dtype=torch.int8).view(kind), torch.arange(16)
    tables = torch.ones(16, 1, 68), torch.zeros(16, 1, 68)
    gpu_rotary.rotate_and_store(rows.clone(), 1, *tables, pool, slots)
    assert torch.equal(pool.view(16, 2, 72).view(torch.int8), kv_rows.quantize(rows[:, 1:], kind).view(torch.int8))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 192), (5, 129), (0, 8)])
def test_the_norm_of_a_sum(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, delta = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight, floor = torch.randn(width).to(dtype), torch.tensor(1e-5)
    added, normed = gpu_norms.add_rms_norm(x, delta, weight, floor)
    wanted = norms.rms_norm_ref(x + delta, weight, floor)
    assert torch.equal(added, x + delta)
    assert close(normed, wanted)
    assert dtype == torch.float32 or rows == 0 or (normed == wanted).float().mean() > 0.97, "rounded at the same places"
    for one, other in zip(gpu_norms.add_rms_norm(x[None], delta[None], weight, floor), (added, normed), strict=True):
        assert torch.equal(one, other[None])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [2, 24, 80])
def test_turned_in_place(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    tables = rotary.angles_to_tables(10 * torch.rand(5, size // 2), dtype)
    qkv = torch.randn(5, 9, size).to(dtype)
    ours, theirs = qkv.clone(), qkv.clone()
    gpu_rotary.rotate_(ours[:, :6], *tables)
    rotary.rotate_ref_(theirs[:, :6], *tables)
    assert close(ours, theirs)
    assert dtype == torch.float32 or (ours == theirs).float().mean() > 0.97, "rounded at the same places"
    assert torch.equal(ours[:, 6:], qkv[:, 6:])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_row_that_hardly_varies_is_told_from_one_that_varies_by_epsilon(norm: str) -> None:
    x, ones, eps = 1e-3 * torch.randn(3, 64), torch.ones(64), 1e-6
    if norm == "layer_norm":
        ours = gpu_layer_norm.layer_norm(x, ones, ones, eps)
        assert close(ours, layer_norm.layer_norm_ref(x, ones, ones, eps))
    else:
        assert close(gpu_norms.rms_norm(x, ones, torch.tensor(eps)), norms.rms_norm_ref(x, ones, torch.tensor(eps)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "width"), [((1,), 192), ((2, 3), 129), ((0,), 8), ((4,), 1)])
def test_layer_norm_alone_and_of_a_sum(shape: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    wide = torch.full((*shape, width + 5), torch.nan, dtype=dtype)  # a slice of a wider tensor
    wide[..., 2 : 2 + width] = 3 + torch.randn(*shape, width)
    x, delta = wide[..., 2 : 2 + width], torch.randn(*shape, width).to(dtype)
    weight, bias = (torch.randn(width).to(dtype) for _ in range(2))
    assert close(gpu_layer_norm.layer_norm(x, weight, bias, 1e-5), layer_norm.layer_norm_ref(x, weight, bias, 1e-5))
    added, normed = gpu_layer_norm.add_layer_norm(x, delta, weight, bias, 1e-5)
    assert torch.equal(added, x + delta)
    assert close(normed, layer_norm.layer_norm_ref(x + delta, weight, bias, 1e-5))


def test_a_row_without_a_slot_is_turned_and_not_stored() -> None:
    tables, qkv = rotary.angles_to_tables(torch.rand(3, 8), torch.float32), torch.randn(3, 4, 16)
    pool, slots = torch.full((2, 2, 2, 16), 7.0), torch.tensor([1, -1, 2])
    ours = qkv.clone()
    gpu_rotary.rotate_and_store(ours, 2, *tables, pool, slots)
    assert (ours[1, :2] != qkv[1, :2]).any()
    assert (pool.view(4, -1)[[0, 3]] == 7).all()
    assert (pool.view(4, -1)[[1, 2]] != 7).all()
