"""Activations in 8 bits and their products against the definitions; NaN, or a code of -1, stands around whatever should
not be read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opsin_kernels import activations, fp8_linear, int8_linear
from opsin_kernels.dispatch import INTERPRETED
from opsin_kernels.gpu import rms_norm as gpu_norms
from opsin_kernels.gpu import row_codes as gpu_rows
from opsin_kernels.gpu import w8a8_linear as gpu
from opsin_kernels.gpu.w8a8_shapes import BUCKETS, MANY_ROWS, parts_for, shape_for, shapes_of
from opsin_kernels.row_codes import RowCodes, RowForm, quantize_rows_ref
from opsin_kernels.w8a8_linear import w8a8_linear_ref

TYPES = (torch.float32, torch.bfloat16)
SUMMED = {torch.int8: 1e-6, torch.float8_e4m3fn: 1e-6 if INTERPRETED else 2.0**-12}  # of the sum of products' sizes
ROUNDED = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
KINDS = (torch.int8, torch.float8_e4m3fn)
if not INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
    KINDS = (torch.int8,)
kinds = pytest.mark.parametrize("kind", KINDS, ids=["int8", "fp8"][: len(KINDS)])


def rows_of(count: int, width: int, dtype: torch.dtype) -> Tensor:
    """A slice of a wider tensor of NaN."""
    wide = torch.full((count + 1, width + 16), torch.nan, dtype=dtype)
    wide[:count, 8 : 8 + width] = torch.randn(count, width)
    return wide[:count, 8 : 8 + width]


def margin(codes: Tensor) -> Tensor:
    """The same codes between others."""
    flat = codes.view(torch.int8).flatten()
    wide = torch.full((len(flat) + 256,), -1, dtype=torch.int8)
    wide[128 : 128 + len(flat)] = flat
    return wide[128 : 128 + len(flat)].view(codes.dtype).view(codes.shape)


def operands(
    kind: torch.dtype, rows: int, outputs: int, inputs: int, groups: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[RowCodes, Tensor, Tensor]:
    torch.manual_seed(rows + inputs)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    quantize = int8_linear.quantize_rows if kind == torch.int8 else fp8_linear.quantize_rows
    codes, scale = quantize(weight.view(outputs * groups, -1))
    found = quantize_rows_ref(x, RowForm(kind))
    return (
        RowCodes(margin(found.codes), found.scale, dtype),
        margin(codes.view(outputs, inputs)),
        scale.view(outputs, groups),
    )


def check(found: Tensor, rows: RowCodes, quantized: Tensor, scale: Tensor) -> None:
    """Sums of int8 are exact; where there are groups float32's rounding lies in between, and in sums of float8 what
    tensor cores keep of them."""
    wanted = w8a8_linear_ref(RowCodes(rows.codes, rows.scale, torch.float32), quantized, scale)
    assert found.dtype == rows.dtype
    if scale.shape[1] == 1 and rows.codes.dtype == torch.int8:
        assert torch.equal(found, wanted.to(rows.dtype))
        return
    size = (
        rows.codes.float().abs()
        @ (quantized.float().abs().unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1).T
    )
    bound = 1.01 * ROUNDED[rows.dtype] * wanted.abs() + SUMMED[rows.codes.dtype] * size * rows.scale
    assert ((found.float() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "outputs", "inputs", "groups"), [(1, 3, 80, 1), (20, 66, 384, 1), (5, 9, 384, 3)])
@kinds
def test_products_are_the_definitions(
    kind: torch.dtype, rows: int, outputs: int, inputs: int, groups: int, dtype: torch.dtype
) -> None:
    given = operands(kind, rows, outputs, inputs, groups, dtype)
    check(gpu.linear(*given), *given)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("parts", [3, 16])
@kinds
def test_parts_of_a_sum_are_added_up(kind: torch.dtype, parts: int, groups: int) -> None:
    """Also parts that there are not."""
    given = operands(kind, 3, 9, 1024, groups)
    check(gpu.linear(*given, parts=parts), *given)


@pytest.mark.parametrize(("rows", "outputs"), [(0, 64), (33, 64), (128, 64), (130, 64), (130, 70)])
@kinds
def test_every_number_of_rows_gives_the_same(kind: torch.dtype, rows: int, outputs: int) -> None:
    """By the library where it can, by more than one tile where it cannot."""
    given = operands(kind, rows, outputs, 64, dtype=torch.bfloat16)
    found = gpu.linear(*given)
    assert found.shape == (rows, outputs)
    if rows:
        check(found, *given)


def test_a_row_of_int8_is_the_same_however_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every bucket, in any number of parts, and by the library in blocks, to the bit."""
    rows, quantized, scale = operands(torch.int8, 160, 80, 256)
    monkeypatch.setattr(gpu, "SUM_BYTES", 4 * 160 * 64)
    together = gpu.linear(rows, quantized, scale)
    for count in (1, 17, 60, 128):
        alone = RowCodes(rows.codes[-count:], rows.scale[-count:], rows.dtype)
        for parts in (None, 2):
            assert torch.equal(gpu.linear(alone, quantized, scale, parts=parts), together[-count:])


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("size", [1, 700, 5000])
@kinds
def test_rows_become_the_definitions_codes(kind: torch.dtype, size: int, dtype: torch.dtype) -> None:
    x = rows_of(3, size, dtype)
    x[1] = 0
    wanted, found = quantize_rows_ref(x, RowForm(kind)), gpu_rows.quantize_rows(x, RowForm(kind))
    assert torch.equal(found.codes.view(torch.int8), wanted.codes.view(torch.int8))
    assert torch.equal(found.scale, wanted.scale)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", TYPES)
@kinds
def test_codes_of_a_norm_are_those_of_what_the_norm_gives(kind: torch.dtype, dtype: torch.dtype) -> None:
    """So rows that are quantized by a kernel of their own get the same to the bit."""
    x, delta = rows_of(4, 130, dtype), torch.randn(4, 130).to(dtype)
    weight, floor = torch.randn(130).to(dtype), torch.tensor(1e-5)
    for other, keep in ((None, False), (None, True), (delta, False), (delta, True)):
        added, normed = gpu_norms._norm(x, other, weight, floor, False)
        sums, found = gpu_norms.norm_codes(x, other, weight, floor, RowForm(kind, keep))
        same(found, quantize_rows_ref(normed, RowForm(kind, keep)))
        assert other is None or torch.equal(sums, added)


def same(found: RowCodes, wanted: RowCodes) -> None:
    assert torch.equal(found.codes.view(torch.int8), wanted.codes.view(torch.int8))
    assert torch.equal(found.scale, wanted.scale)
    assert found.dtype == wanted.dtype
    assert (found.values is None) == (wanted.values is None)
    assert found.values is None or torch.equal(found.values, wanted.values)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@kinds
def test_codes_of_a_gate_are_those_of_what_it_gives(
    kind: torch.dtype, activation: activations.Activation, dtype: torch.dtype
) -> None:
    from opsin_kernels.gpu import activations as gpu_activations

    x = rows_of(3, 2 * 600, dtype)
    for form in (RowForm(kind), RowForm(kind, keep=True)):
        found = gpu_rows.gated_codes(x, activation, form)
        same(found, quantize_rows_ref(gpu_activations.gated(x.clone(), activation), form))
    assert len(gpu_rows.gated_codes(x[:0], activation, RowForm(kind))) == 0


@pytest.mark.parametrize("span", [0, 32, 96, 128])
def test_shapes_that_are_compiled_are_all_that_are_chosen(span: int) -> None:
    compiled = set(shapes_of(span))
    for rows in (*range(1, MANY_ROWS + 2), 4096):
        shape = shape_for(rows, span)
        assert shape in compiled
        assert min(rows, MANY_ROWS) <= shape.block_m in BUCKETS
        assert 1 <= parts_for(512, rows, 40, shape, 132) <= 16
