"""A quantized weight as floats, a block of its rows at a time, for the library's products: of many rows, and backward.

The floats of a block are written once and read once by the product behind it; a block is small enough for a large
chip's last cache, or nearly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu.codes import Weight, groups_of_a_step, meant, numbers_of, places_of, reads_e4m3, steps_of
from opsin_kernels.gpu.wide_product import wide_product

BLOCK_BYTES = 32 * 2**20  # of floats
BLOCK_N, STEP = 16, 64  # rows, bytes of a program


@triton.jit(do_not_specialize=["first", "count"])
def dequantize_rows(
    codes_ptr,  # U8 [N, row_bytes]
    scale_ptr,  # [N, G]
    offset_ptr,  # [N, G]; only with OFFSET
    table_ptr,  # F32 [16]; only of "table4"
    out_ptr,  # [count, PARTS · row_bytes]
    first,  # row
    count,
    groups,  # G
    row_bytes,
    FORM: tl.constexpr,
    HARDWARE: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    MANY: tl.constexpr,
    STEP: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < count
    n = first + row
    group, byte, there, low, high = places_of(tl.program_id(1), row_bytes, PARTS, SPAN, MANY, STEP)
    mask = inside[:, None] & there[None, :]
    codes = tl.load(codes_ptr + n[:, None] * row_bytes + byte[None, :], mask=mask, other=0)
    many = group + tl.arange(0, MANY)
    at = n[:, None] * groups + many[None, :]
    known = inside[:, None] & (many < groups)[None, :]
    factors = tl.load(scale_ptr + at, mask=known, other=0.0).to(tl.float32)
    offsets = factors
    if OFFSET:
        offsets = tl.load(offset_ptr + at, mask=known, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    out_row = out_ptr + row[:, None] * (row_bytes * PARTS)
    if PARTS == 2:
        highs = meant(numbers_of(codes >> 4, table_ptr, FORM, HARDWARE), factors, offsets, OFFSET)
        tl.store(out_row + high[None, :], highs.to(kind), mask=mask)
        codes = codes & 15
    lows = meant(numbers_of(codes, table_ptr, FORM, HARDWARE), factors, offsets, OFFSET)
    tl.store(out_row + low[None, :], lows.to(kind), mask=mask)


def dequantize(weight: Weight, rows: slice, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Rows of W [n, K], rounded once to dtype. out: memory for them, and more."""
    first, stop, _ = rows.indices(weight.outputs)
    count = stop - first
    if out is None:
        out = torch.empty(count, weight.inputs, device=weight.codes.device, dtype=dtype)
    many = groups_of_a_step(weight.span, STEP)
    # A product is rounded before its offset is added, as the definition does it: so a 0 stays one.
    dequantize_rows[(triton.cdiv(count, BLOCK_N), steps_of(weight, STEP, many))](
        *weight.pointers(), out, first, count, weight.groups, weight.codes.shape[1], FORM=weight.form,
        HARDWARE=weight.form == "fp8" and reads_e4m3(), PARTS=weight.parts, SPAN=weight.span, MANY=many, STEP=STEP,
        OFFSET=weight.offset is not None, BLOCK_N=BLOCK_N, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out[:count]


def blocks_of(weight: Weight, dtype: torch.dtype) -> list[slice]:
    """Of the weight's rows, so that the floats of each take BLOCK_BYTES at most; a row at least."""
    size = BLOCK_BYTES // (weight.inputs * dtype.itemsize)
    size = max(1, size // 64 * 64 or size)
    return [slice(at, min(at + size, weight.outputs)) for at in range(0, weight.outputs, size)]


def product(x: Tensor, weight: Weight) -> Tensor:
    """x [M, K] -> x · Wᵀ [M, N]."""
    blocks = blocks_of(weight, x.dtype)
    if len(blocks) == 1:
        return F.linear(x, dequantize(weight, blocks[0], x.dtype))
    out = torch.empty(len(x), weight.outputs, device=x.device, dtype=x.dtype)
    floats = torch.empty(blocks[0].stop, weight.inputs, device=x.device, dtype=x.dtype)
    for rows in blocks:
        torch.mm(x, dequantize(weight, rows, x.dtype, floats).t(), out=out[:, rows])
    return out


def input_gradient(gradient: Tensor, weight: Weight) -> Tensor:
    """gradient [M, N] -> gradient · W [M, K]. Blocks are added up in float32, in order."""
    blocks = blocks_of(weight, gradient.dtype)
    if len(blocks) == 1:
        return gradient @ dequantize(weight, blocks[0], gradient.dtype)
    out = torch.zeros(len(gradient), weight.inputs, device=gradient.device, dtype=torch.float32)
    floats = torch.empty(blocks[0].stop, weight.inputs, device=gradient.device, dtype=gradient.dtype)
    for rows in blocks:
        out += wide_product(gradient[:, rows], dequantize(weight, rows, gradient.dtype, floats))
    return out.to(gradient.dtype)
