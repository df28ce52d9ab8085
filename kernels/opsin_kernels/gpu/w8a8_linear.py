"""x · Wᵀ where both are codes of 8 bits: the tensor cores multiply codes, and scales come in behind the sum.

The tile of the weight is the left side of the product, so that few rows of x cost what they are. Sums of int8 codes are
int32, so exact, and a row's result is the same to the bit however it is computed: alone or among others, here or by the
library. Sums of float8 codes are float32, added step by step, and with the same rows of a bucket in the same order.

Where outputs give too few programs, a row's sum is split into parts, which stay apart in memory until a second kernel
adds them in order and scales them; that kernel also finishes what the library sums of int8. Floor: the bytes of the
weight's codes for few rows, the chip's rate of products for many.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu import forms
from opsin_kernels.gpu.attention_shapes import processors_of
from opsin_kernels.gpu.codes import places_of
from opsin_kernels.gpu.w8a8_shapes import MANY_ROWS, Shape, parts_for, shape_for, shapes_of, steps_of
from opsin_kernels.row_codes import RowCodes

FINISHED = 1024  # outputs of a program of `finish_sums`
SUM_BYTES = 32 * 2**20  # of the library's sums at a time: what a large chip's last cache holds, or nearly
WHOLE = 16  # the library wants inputs and outputs in multiples of it


@triton.jit(do_not_specialize=["rows", "steps", "share"])
def multiply_codes(
    x_ptr,  # I8 or F8 [M, K], dense
    codes_ptr,  # the same [N, K], dense
    x_scale_ptr,  # F32 [M]
    scale_ptr,  # F32 [N, G]
    out_ptr,  # [M, N]; of several parts F32 or I32 [parts, M, N], not scaled by rows, nor by outputs of one group
    rows,  # M
    outputs,  # N
    inputs,  # K
    groups,  # G
    steps,  # of a row
    share,  # of a part
    SPAN: tl.constexpr,  # inputs of a group; 0: the whole row
    STEP: tl.constexpr,
    FINISHES: tl.constexpr,  # whether there is one part
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    here, inside = m < rows, n < outputs
    x_row = x_ptr + m.to(tl.int64)[None, :] * inputs
    row_ptr = codes_ptr + n.to(tl.int64)[:, None] * inputs
    first_group = n.to(tl.int64) * groups
    summed: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    imprecise: tl.constexpr = 0 if x_ptr.dtype.element_ty == tl.int8 else STEP
    acc = tl.zeros((BLOCK_N, BLOCK_M), summed if SPAN == 0 else tl.float32)
    begin = tl.program_id(2) * share
    for step in range(begin, tl.minimum(begin + share, steps)):
        group, at, there, _, _ = places_of(step, inputs, 1, SPAN, 1, STEP)
        codes = tl.load(row_ptr + at[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        x = tl.load(x_row + at[:, None], mask=there[:, None] & here[None, :], other=0.0)
        if SPAN == 0:
            acc = tl.dot(codes, x, acc, max_num_imprecise_acc=imprecise, out_dtype=summed)
        else:
            factor = tl.load(scale_ptr + first_group + group, mask=inside, other=0.0).to(tl.float32)
            sums = tl.dot(codes, x, max_num_imprecise_acc=imprecise, out_dtype=summed)
            acc += sums.to(tl.float32) * factor[:, None]
    if FINISHES:
        total = acc.to(tl.float32)
        if SPAN == 0:
            total *= tl.load(scale_ptr + n, mask=inside, other=0.0).to(tl.float32)[:, None]
        total *= tl.load(x_scale_ptr + m, mask=here, other=0.0)[None, :]
    else:
        total = acc
    at = (tl.program_id(2).to(tl.int64) * rows + m)[:, None] * outputs + n[None, :]
    tl.store(out_ptr + at, tl.trans(total).to(out_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "parts"])
def finish_sums(
    sums_ptr,  # I32 or F32 [parts, M, N]
    x_scale_ptr,  # F32 [M]
    scale_ptr,  # F32 [N]; only with SCALED
    out_ptr,  # [M, N], rows `stride` apart
    rows,
    outputs,
    stride,
    parts,
    SCALED: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = n < outputs
    part_ptr = sums_ptr + row * outputs + n
    acc = tl.zeros((STEP,), sums_ptr.dtype.element_ty)
    for _ in range(parts):
        acc += tl.load(part_ptr, mask=inside, other=0)
        part_ptr += rows.to(tl.int64) * outputs
    total = acc.to(tl.float32)
    if SCALED:
        total *= tl.load(scale_ptr + n, mask=inside, other=0.0).to(tl.float32)
    total *= tl.load(x_scale_ptr + row)
    tl.store(out_ptr + row * stride + n, total.to(out_ptr.dtype.element_ty), mask=inside)


def linear(
    rows: RowCodes, quantized: Tensor, scale: Tensor, shape: Shape | None = None, parts: int | None = None
) -> Tensor:
    """rows of M, quantized [N, K], scale [N, G] -> [M, N]. shape, parts: None chooses. Deterministic."""
    if forms.every_form() and len(rows):
        _compile(rows, quantized, scale)
    if len(rows) > MANY_ROWS and shape is None and _is_the_librarys(rows, quantized, scale):
        return _by_the_library(rows, quantized, scale)
    out = torch.empty(len(rows), len(quantized), device=quantized.device, dtype=rows.dtype)
    if not len(rows):
        return out
    span = _span(quantized, scale)
    shape = shape or shape_for(len(rows), span)
    steps = steps_of(quantized.shape[1], span, shape.step)
    processors = processors_of(quantized.device)
    _multiply(
        rows, quantized, scale, out, shape, parts or parts_for(len(quantized), len(rows), steps, shape, processors)
    )
    return out


def _span(quantized: Tensor, scale: Tensor) -> int:
    return 0 if scale.shape[1] == 1 else quantized.shape[1] // scale.shape[1]


def _is_the_librarys(rows: RowCodes, quantized: Tensor, scale: Tensor) -> bool:
    """Of float8 it makes bfloat16 alone."""
    whole = scale.shape[1] == 1 and all(size % WHOLE == 0 for size in quantized.shape)
    return whole and (quantized.dtype == torch.int8 or rows.dtype == torch.bfloat16)


def _by_the_library(rows: RowCodes, quantized: Tensor, scale: Tensor) -> Tensor:
    if quantized.dtype != torch.int8:
        return torch._scaled_mm(
            rows.codes, quantized.t(), rows.scale, scale.t(), out_dtype=rows.dtype, use_fast_accum=False
        )
    out = torch.empty(len(rows), len(quantized), device=quantized.device, dtype=rows.dtype)
    size = max(1, SUM_BYTES // (4 * len(rows)) // 64) * 64
    for first in range(0, len(quantized), size):
        block = slice(first, first + size)
        sums = torch._int_mm(rows.codes, quantized[block].t())
        _finish(sums, 1, rows.scale, scale[block], out[:, block])
    return out


def _compile(rows: RowCodes, quantized: Tensor, scale: Tensor) -> None:
    """By a row, for any number of them. What the library refuses on this device is known then, too."""
    one = RowCodes(rows.codes[:1], rows.scale[:1], rows.dtype)
    out = torch.empty(1, len(quantized), device=quantized.device, dtype=rows.dtype)
    for shape in shapes_of(_span(quantized, scale)):
        for parts in (1, 2):
            _multiply(one, quantized, scale, out, shape, parts)
    if _is_the_librarys(rows, quantized, scale):
        many = RowCodes(
            one.codes.expand(MANY_ROWS + 1, -1).contiguous(), one.scale.repeat(MANY_ROWS + 1, 1), rows.dtype
        )
        _by_the_library(many, quantized, scale)


def _multiply(rows: RowCodes, quantized: Tensor, scale: Tensor, out: Tensor, shape: Shape, parts: int) -> None:
    count, outputs, inputs, span = len(rows), *quantized.shape, _span(quantized, scale)
    steps = steps_of(inputs, span, shape.step)
    sums = out
    if parts > 1:
        kind = torch.int32 if quantized.dtype == torch.int8 and not span else torch.float32
        sums = torch.empty(parts, count, outputs, device=out.device, dtype=kind)
    multiply_codes[(triton.cdiv(count, shape.block_m), triton.cdiv(outputs, shape.block_n), parts)](
        rows.codes, quantized, rows.scale, scale, sums, count, outputs, inputs, scale.shape[1], steps,
        triton.cdiv(steps, parts), SPAN=span, STEP=shape.step, FINISHES=parts == 1, BLOCK_M=shape.block_m,
        BLOCK_N=shape.block_n, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    if parts > 1:
        _finish(sums, parts, rows.scale, None if span else scale, out)


def _finish(sums: Tensor, parts: int, x_scale: Tensor, scale: Tensor | None, out: Tensor) -> None:
    count, outputs = out.shape
    finish_sums[(count, triton.cdiv(outputs, FINISHED))](
        sums, x_scale, scale, out, count, outputs, out.stride(0), parts, SCALED=scale is not None, STEP=FINISHED,
        num_warps=4,
    )  # fmt: skip
