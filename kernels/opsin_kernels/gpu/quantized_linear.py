"""x · Wᵀ of few rows with a quantized weight: bytes are read once, and become numbers on their way to the tensor cores.

The tile of the weight is the left side of the product, so that one row of x and sixteen cost the same. Codes of 8 bits
are numbers that every type of x has: the sums of each group are scaled, and nothing is rounded but the result. Where
there are offsets, tables of numbers or small groups, weights are scaled and rounded as the definition rounds them.

Rows of x are few, so programs are: a row's sum is split into parts, which stay apart in memory until a second kernel
adds them in order. No atomic operations; what a row gets depends on no other row of its bucket. From MANY_ROWS on, see
`gpu/dequantize.py`. Floor: the weight's bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu import dequantize, forms
from opsin_kernels.gpu.attention_shapes import processors_of
from opsin_kernels.gpu.codes import Weight, meant, numbers_of, places_of, reads_e4m3, sixteenths_of, steps_of
from opsin_kernels.gpu.quantized_shapes import MANY_ROWS, Shape, parts_for, shape_for, shapes_of

ADDED = 1024  # numbers that a program of `add_parts` adds up


@triton.jit(do_not_specialize=["rows", "steps", "share"])
def multiply(
    x_ptr,  # [M, K], rows `x_stride` apart
    codes_ptr,  # U8 [N, row_bytes]
    scale_ptr,  # [N, G]
    offset_ptr,  # [N, G]; only with OFFSET
    table_ptr,  # F32 [16]; only of "table4"
    out_ptr,  # [M, N]; of several parts F32 [parts, M, N]
    x_stride,
    rows,  # M
    outputs,  # N
    groups,  # G
    row_bytes,
    steps,  # of a row
    share,  # of a part
    FORM: tl.constexpr,
    HARDWARE: tl.constexpr,
    PARTS: tl.constexpr,  # codes of a byte
    SPAN: tl.constexpr,  # bytes of a group; 0: the whole row
    MANY: tl.constexpr,  # groups of a step
    STEP: tl.constexpr,  # bytes
    TILED: tl.constexpr,  # whether the weight is scaled, and else the sums
    OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < outputs
    m = tl.arange(0, BLOCK_M)
    here = m < rows
    row_ptr = codes_ptr + n.to(tl.int64)[:, None] * row_bytes
    first_group = n.to(tl.int64) * groups
    x_row = x_ptr + m.to(tl.int64)[None, :] * x_stride
    kind = x_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    begin = tl.program_id(1) * share
    for step in range(begin, tl.minimum(begin + share, steps)):
        group, byte, there, low, high = places_of(step, row_bytes, PARTS, SPAN, MANY, STEP)
        codes = tl.load(row_ptr + byte[None, :], mask=inside[:, None] & there[None, :], other=0)
        known = there[:, None] & here[None, :]
        x_low = tl.load(x_row + low[:, None], mask=known, other=0.0)
        if FORM == "int4":
            lows, highs = sixteenths_of(codes)
        elif PARTS == 2:
            lows = numbers_of(codes & 15, table_ptr, FORM, HARDWARE)
            highs = numbers_of(codes >> 4, table_ptr, FORM, HARDWARE)
        else:
            lows = numbers_of(codes, table_ptr, FORM, HARDWARE)
        if TILED:
            many = group + tl.arange(0, MANY)
            at = first_group[:, None] + many[None, :]
            one = inside[:, None] & (many < groups)[None, :]
            factors = tl.load(scale_ptr + at, mask=one, other=0.0).to(tl.float32)
            offsets = factors
            if OFFSET:
                offsets = tl.load(offset_ptr + at, mask=one, other=0.0).to(tl.float32)
            if FORM == "int4":
                factors *= 16
                offsets -= factors
            acc = tl.dot(meant(lows, factors, offsets, OFFSET).to(kind), x_low, acc, input_precision="ieee")
            if PARTS == 2:
                x_high = tl.load(x_row + high[:, None], mask=known, other=0.0)
                acc = tl.dot(meant(highs, factors, offsets, OFFSET).to(kind), x_high, acc, input_precision="ieee")
        elif SPAN == 0:
            acc = tl.dot(lows.to(kind), x_low, acc, input_precision="ieee")
        else:
            factor = tl.load(scale_ptr + first_group + group, mask=inside, other=0.0).to(tl.float32)
            acc += tl.dot(lows.to(kind), x_low, input_precision="ieee") * factor[:, None]

    if SPAN == 0 and not TILED:
        acc *= tl.load(scale_ptr + n, mask=inside, other=0.0).to(tl.float32)[:, None]
    at = (tl.program_id(1).to(tl.int64) * rows + m)[:, None] * outputs + n[None, :]
    tl.store(out_ptr + at, tl.trans(acc).to(out_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["count", "parts"])
def add_parts(
    parts_ptr,  # F32 [parts, count]
    out_ptr,  # [count]
    count,
    parts,
    STEP: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < count
    total = tl.zeros((STEP,), tl.float32)
    part_ptr = parts_ptr + at
    for _ in range(parts):
        total += tl.load(part_ptr, mask=inside, other=0.0)
        part_ptr += count
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Weight, shape: Shape | None = None, parts: int | None = None) -> Tensor:
    """x [M, K] -> x · Wᵀ [M, N]. shape, parts: None chooses.

    Sums are float32. Deterministic, and the same for a row whatever rows of the bucket stand beside it. Raises
    ValueError where a gradient is needed: `input_gradient` makes it."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("the product with a quantized weight has no backward pass of its own")
    x = x if x.stride(1) == 1 else x.contiguous()
    if forms.every_form() and len(x):
        _compile(x, weight)
    if len(x) >= MANY_ROWS and shape is None:
        return dequantize.product(x, weight)
    out = torch.empty(len(x), weight.outputs, device=x.device, dtype=x.dtype)
    if len(x):
        shape = shape or shape_for(weight, len(x), 8 * x.itemsize)
        _multiply(x, weight, out, shape, parts or parts_for(weight, shape, processors_of(x.device)))
    return out


def _compile(x: Tensor, weight: Weight) -> None:
    """By a row, for any number of them."""
    out = torch.empty(1, weight.outputs, device=x.device, dtype=x.dtype)
    for shape in shapes_of(weight, 8 * x.itemsize):
        for parts in (1, 2):
            _multiply(x[:1], weight, out, shape, parts)
    dequantize.dequantize(weight, slice(0, 1), x.dtype)


def _multiply(x: Tensor, weight: Weight, out: Tensor, shape: Shape, parts: int) -> None:
    rows, outputs = out.shape
    steps = steps_of(weight, shape.step, shape.many)
    sums = out if parts == 1 else torch.empty(parts, rows, outputs, device=x.device, dtype=torch.float32)
    multiply[(triton.cdiv(outputs, shape.block_n), parts)](
        x, *weight.pointers(), sums, x.stride(0), rows, outputs, weight.groups, weight.codes.shape[1], steps,
        triton.cdiv(steps, parts), FORM=weight.form, HARDWARE=weight.form == "fp8" and reads_e4m3(),
        PARTS=weight.parts, SPAN=weight.span, MANY=shape.many, STEP=shape.step,
        TILED=shape.tiled, OFFSET=weight.offset is not None, BLOCK_M=shape.block_m,
        BLOCK_N=shape.block_n, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    if parts > 1:
        add_parts[(triton.cdiv(out.numel(), ADDED),)](sums, out, out.numel(), parts, STEP=ADDED, num_warps=4)
