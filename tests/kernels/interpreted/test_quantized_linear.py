"""Products with quantized weights against what the weights mean; NaN stands around whatever should not be read."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from opsin_kernels import fp8_linear, int4_linear, int8_linear, table4_linear
from opsin_kernels.dispatch import INTERPRETED
from opsin_kernels.gpu import codes as gpu_codes
from opsin_kernels.gpu import dequantize as gpu_dequantize
from opsin_kernels.gpu import quantized_linear as gpu
from opsin_kernels.gpu.codes import Weight
from opsin_kernels.gpu.quantized_shapes import BUCKETS, MANY_ROWS, parts_for, shape_for, shapes_of
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.weight_formats import form_of
from opsin_plugins.spec import CodeForm

# Of a result, relative to itself and to the sum of the products' sizes: its own rounding, that of float32 sums.
ROUNDED = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# form, inputs of a group (0: whole rows), offset, 16-bit scales
FORMS = [
    ("int4", 32, True, True),
    ("int4", 64, True, False),
    ("int4", 128, True, True),
    ("int4", 0, True, False),
    ("int4", 24, True, False),
    ("int8", 16, False, True),
    ("int8", 32, True, False),
    ("int8", 128, False, False),
    ("int8", 0, False, False),
    ("int8", 0, True, False),
    ("fp8", 64, False, False),
    ("fp8", 0, False, False),
    ("table4", 32, False, True),
    ("table4", 64, False, False),
    ("table4", 0, False, False),
]
NAMES = [f"{form} {group or 'rows'}{' offset' * offset}{' half' * half}" for form, group, offset, half in FORMS]
forms = pytest.mark.parametrize("form", FORMS, ids=NAMES)


def margin(values: Tensor) -> Tensor:
    """The same numbers between others: what a stray read finds is NaN, or a code of 255."""
    flat = values.flatten()
    stray = 255 if values.dtype == torch.uint8 else -1 if values.dtype == torch.int8 else torch.nan
    wide = torch.full((len(flat) + 256,), 0, dtype=torch.float32).fill_(stray).to(values.dtype)
    wide[128 : 128 + len(flat)] = flat
    return wide[128 : 128 + len(flat)].view(values.shape)


def weight_of(form: tuple, outputs: int, inputs: int, seed: int = 0) -> Weight:
    name, group, offset, half = form
    torch.manual_seed(seed)
    groups, size = inputs // (group or inputs), torch.float16 if half else torch.float32
    packed = inputs // 2 if name in ("int4", "table4") else inputs
    codes = torch.randint(0, 256, (outputs, packed), dtype=torch.uint8)
    if name == "int8":
        codes = codes.view(torch.int8)
    if name == "fp8":
        codes = (100 * torch.randn(outputs, inputs)).to(torch.float8_e4m3fn)
        codes[0, :2] = torch.tensor([2.0**-9, -448.0]).to(codes.dtype)  # the smallest and the largest
    scale, offsets = torch.rand(outputs, groups).to(size), torch.randn(outputs, groups).to(size)
    table = torch.randn(16) if name == "table4" else None
    return Weight(
        name,
        margin(codes),
        margin(scale),
        margin(offsets) if offset else None,
        None if table is None else margin(table),
    )


def meant(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """By the definition."""
    codes, scale = weight.codes, weight.scale
    if weight.form == "int4":
        assert weight.offset is not None
        return int4_linear.dequantize_groups(codes, scale, weight.offset, dtype)
    if weight.form == "int8":
        return int8_linear.dequantize(codes, scale, weight.offset, dtype)
    if weight.form == "fp8":
        return fp8_linear.dequantize(codes, scale, dtype)
    assert weight.table is not None
    return table4_linear.dequantize(codes, scale, weight.table, dtype)


def rows_of(count: int, width: int, dtype: torch.dtype) -> Tensor:
    """A slice of a wider tensor of NaN."""
    wide = torch.full((count + 1, width + 16), torch.nan, dtype=dtype)
    wide[:count, 8 : 8 + width] = torch.randn(count, width)
    return wide[:count, 8 : 8 + width]


def check(found: Tensor, x: Tensor, weight: Weight, tiled: bool) -> None:
    """tiled: whether weights are rounded to x's type, each on its own, beside the result."""
    rounded, numbers, wide = ROUNDED[x.dtype], x.double(), meant(weight).double()
    wanted, size = numbers @ wide.T, numbers.abs() @ wide.abs().T
    bound = 1.01 * rounded * wanted.abs() + 2e-6 * size
    if tiled:
        bound += 2 * rounded * (numbers.square() @ wide.square().T).sqrt()
    assert found.dtype == x.dtype
    assert ((found.double() - wanted).abs() <= bound).all(), float(((found.double() - wanted).abs() / bound).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 384), (20, 66, 384)])
@forms
def test_products_are_those_of_the_weight_that_is_meant(
    form: tuple, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight, x = weight_of(form, outputs, inputs), rows_of(rows, inputs, dtype)
    found = gpu.linear(x, weight, parts=1)
    check(found, x, weight, shape_for(weight, rows, 8 * dtype.itemsize).tiled)


@pytest.mark.parametrize("parts", [3, 16])
@forms
def test_parts_of_a_sum_are_added_up(form: tuple, parts: int) -> None:
    """Also parts that there are not."""
    weight, x = weight_of(form, 9, 768), rows_of(3, 768, torch.float16)
    found = gpu.linear(x, weight, parts=parts)
    check(found, x, weight, shape_for(weight, 3, 16).tiled)


@pytest.mark.parametrize("inputs", [2, 34, 200, 1026])
@pytest.mark.parametrize("form", [f for f in FORMS if f[1] == 0], ids=[n for n in NAMES if "rows" in n])
def test_rows_of_any_length_may_be_one_group(form: tuple, inputs: int) -> None:
    for rows in (1, 33):
        weight, x = weight_of(form, 5, inputs), rows_of(rows, inputs, torch.bfloat16)
        check(gpu.linear(x, weight), x, weight, shape_for(weight, rows, 16).tiled)


@pytest.mark.parametrize("rows", [0, 16, 17, 64, 100, 127, 128, 130])
@pytest.mark.parametrize("form", [FORMS[2], FORMS[8]], ids=[NAMES[2], NAMES[8]])
def test_every_number_of_rows_gives_the_same(form: tuple, rows: int) -> None:
    weight, x = weight_of(form, 70, 256), rows_of(rows, 256, torch.float32)
    found = gpu.linear(x, weight)
    assert found.shape == (rows, 70)
    if rows:
        check(found, x, weight, tiled=False)


def test_a_row_is_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in one bucket, however many processors there are."""
    if INTERPRETED:  # numpy's BLAS may add up a column in another order where it stands at another place of a tile

        def product(a: np.ndarray, b: np.ndarray, dtype: type) -> np.ndarray:
            return np.einsum("...ij,...jk->...ik", a, b, dtype=dtype, optimize=False)

        monkeypatch.setattr(np, "matmul", product)
    for form in (FORMS[0], FORMS[2], FORMS[8]):
        weight, x = weight_of(form, 34, 512), torch.randn(16, 512)
        together = gpu.linear(x, weight)
        for row in (0, 7, 15):
            assert torch.equal(gpu.linear(x[row : row + 1], weight), together[row : row + 1])


@forms
@pytest.mark.parametrize("dtype", ROUNDED)
def test_floats_are_those_of_the_definition(form: tuple, dtype: torch.dtype) -> None:
    for outputs, inputs in ((1, 192), (35, 384)):
        weight = weight_of(form, outputs, inputs)
        found = gpu_dequantize.dequantize(weight, slice(0, outputs), dtype)
        if weight.form == "int8" and weight.offset is not None:  # torch rounds this sum once or twice
            assert torch.allclose(found.float(), meant(weight).float(), rtol=2 * ROUNDED[dtype], atol=1e-5)
        else:
            assert torch.equal(found, meant(weight, dtype))


def test_every_code_of_8_bits_is_what_it_means() -> None:
    """NaN, too, which float8 has."""
    every = torch.arange(256, dtype=torch.uint8)[None]
    for form, kind in (("fp8", torch.float8_e4m3fn), ("int8", torch.int8)):
        weight = Weight(form, every.view(kind), torch.ones(1, 1))
        for dtype in ROUNDED:
            found = gpu_dequantize.dequantize(weight, slice(0, 1), dtype)
            assert torch.equal(found.nan_to_num(1000.0), weight.codes.to(dtype).nan_to_num(1000.0))


def test_a_zero_in_four_bits_stays_one() -> None:
    codes, scale, offset = int4_linear.quantize_groups(torch.cat([torch.zeros(4, 64), torch.randn(4, 64)], 1), 64)
    weight = Weight("int4", int4_linear.pack_groups(codes, 64), scale, offset)
    assert (gpu_dequantize.dequantize(weight, slice(0, 4), torch.bfloat16)[:, :64] == 0).all()


def test_a_sum_of_codes_that_float16_does_not_hold_is_scaled_before_it_is_rounded() -> None:
    codes, scale = int8_linear.quantize_rows(torch.full((3, 512), 0.01))
    x = torch.full((2, 512), 8.0, dtype=torch.float16)
    assert torch.allclose(gpu.linear(x, Weight("int8", codes, scale)).float(), torch.tensor(40.96), rtol=1e-3)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("block", [1, 2**13, 2**30])
@pytest.mark.parametrize("form", [FORMS[2], FORMS[6], FORMS[11], FORMS[13]])
def test_many_rows_and_gradients_go_by_blocks(
    form: tuple, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row of the weight, of some, and of all."""
    monkeypatch.setattr(gpu_dequantize, "BLOCK_BYTES", block)
    weight = weight_of(form, 5 if block == 1 else 70, 128)
    wide = meant(weight, dtype)  # (torch's own product rounds once, and between blocks not at all)
    x, gradient = torch.randn(MANY_ROWS, 128).to(dtype), torch.randn(9, weight.outputs).to(dtype)
    rows = torch.randn(9, 128, dtype=torch.float64, requires_grad=True)
    (rows @ wide.double().T).backward(gradient.double())
    assert rows.grad is not None
    found = gpu.linear(x, weight), gpu_dequantize.input_gradient(gradient, weight)
    sizes = x.double().abs() @ wide.double().abs().T, gradient.double().abs() @ wide.double().abs()
    for ours, theirs, size in zip(found, (x.double() @ wide.double().T, rows.grad), sizes, strict=True):
        assert ours.dtype == dtype
        assert ((ours.double() - theirs).abs() <= 1.01 * ROUNDED[dtype] * theirs.abs() + 2e-6 * size).all()


@forms
def test_shapes_that_are_compiled_are_all_that_are_chosen(form: tuple) -> None:
    weight = weight_of(form, 3, 768)
    for bits in (16, 32):
        compiled = set(shapes_of(weight, bits))
        for rows in range(1, MANY_ROWS):
            shape = shape_for(weight, rows, bits)
            assert shape in compiled
            assert rows <= shape.block_m == min(b for b in BUCKETS if b >= rows)
            assert shape.many in (1, shape.step // max(1, weight.span))
            for processors in (1, 132):
                assert 1 <= parts_for(weight, shape, processors) <= 16


@pytest.mark.parametrize("rows", [5, MANY_ROWS])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_formats_of_linears_run_the_kernels(ordered: bool, rows: int) -> None:
    """With inputs in an order of the weight's own, a bias, and the gradient of x."""
    form = CodeForm("int4", 32, offset=True, ordered=ordered)
    held = form_of(form)(128, 9)
    values, order = torch.randint(0, 16, (9, 128), dtype=torch.uint8), torch.randperm(128) if ordered else None
    held.fill(0, Codes(form, values, torch.rand(9, 4), torch.randn(9, 4), order))
    x, bias = torch.randn(rows, 128), torch.randn(9)
    with mock.patch.object(gpu, "linear", wraps=gpu.linear) as linear:
        found = held.matmul(x, bias)
    assert linear.call_count == 1
    wide, gradient = held.dequantized(), torch.randn(rows, 9)
    assert torch.allclose(found, x @ wide.T + bias, rtol=1e-4, atol=1e-3)
    assert torch.allclose(held.input_gradient(gradient), gradient @ wide, rtol=1e-4, atol=1e-3)


def test_a_gradient_is_refused() -> None:
    x = torch.randn(2, 128).requires_grad_()
    with torch.enable_grad(), pytest.raises(ValueError, match="no backward pass"):
        gpu.linear(x, weight_of(FORMS[2], 4, 128))


@pytest.mark.skipif(not INTERPRETED, reason="a chip that has the instruction uses it in every other test")
def test_the_instruction_of_later_chips_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weight_of(("fp8", 64, False, False), 9, 256), rows_of(3, 256, torch.float32)
    bits = gpu.linear(x, weight)
    for module in (gpu, gpu_dequantize):
        monkeypatch.setattr(module, "reads_e4m3", lambda: True)
    assert torch.equal(gpu.linear(x, weight), bits)
    assert torch.equal(gpu_dequantize.dequantize(weight, slice(0, 9), torch.float32), meant(weight))
    assert gpu_codes.E4M3 == 89
