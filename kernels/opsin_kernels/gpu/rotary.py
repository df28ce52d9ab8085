"""Queries turned in place, keys turned and stored with their values: one pass over a fused projection."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.gpu.codes import FORMS, scale_for, scaled_codes
from opsin_kernels.kv_rows import LARGEST


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def turn_and_store(
    qkv_ptr,  # [T, H + 2K, D], rows `row_stride` apart
    cos_ptr,  # [T, D]
    sin_ptr,  # [T, D], its first half negated
    slots_ptr,  # I64 [T]; -1: not stored
    pool_ptr,  # [P, 2K, D]; with FORM U8 [P, 2K, D + 4], rows of `kv_rows`; only with STORED
    scale_ptr,  # F32, the same memory; only with FORM
    row_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    STORED: tl.constexpr,  # whether keys and values go into the pool; else every head is turned where it is
    FORM: tl.constexpr,  # of the pool's codes; "": numbers
    LARGEST: tl.constexpr,  # code
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    inside = d < SIZE
    base = qkv_ptr + row * row_stride + head * SIZE
    kind = qkv_ptr.dtype.element_ty
    x = tl.load(base + d, mask=inside, other=0.0).to(tl.float32)
    if not STORED or head < HEADS + KV_HEADS:
        half: tl.constexpr = SIZE // 2
        other = tl.where(d < half, d + half, d - half)
        swapped = tl.load(base + other, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + row * SIZE + d, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + row * SIZE + d, mask=inside, other=0.0).to(tl.float32)
        # The first product is rounded, as the definition's is.
        x = (x * cos).to(kind).to(tl.float32) + swapped * sin
    if not STORED or head < HEADS:
        tl.debug_barrier()  # in place: every thread has read what another one writes
        tl.store(base + d, x.to(kind), mask=inside)
    else:
        slot = tl.load(slots_ptr + row)
        if slot >= 0:
            place = slot * (2 * KV_HEADS) + head - HEADS
            if FORM != "":
                x = x.to(kind).to(tl.float32)
                scale = scale_for(tl.max(tl.abs(x), 0), LARGEST)
                tl.store(pool_ptr + place * (SIZE + 4) + d, scaled_codes(x, scale, FORM, LARGEST), mask=inside)
                tl.store(scale_ptr + place * (SIZE // 4 + 1) + SIZE // 4, scale)
            else:
                tl.store(pool_ptr + place * SIZE + d, x.to(pool_ptr.dtype.element_ty), mask=inside)


def rotate_and_store(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> None:
    """qkv [T, H + 2K, D] of dense heads; pool: with rows of `kv_rows`, if its type is that of codes."""
    rows, count, size = qkv.shape
    form, largest, scales = FORMS.get(pool.dtype, ""), LARGEST.get(pool.dtype, 0.0), None
    if form:
        pool, scales = pool.view(torch.uint8), pool.view(torch.float32)
    turn_and_store[(rows, count)](
        qkv, cos, sin, slots, pool, scales, qkv.stride(0), HEADS=heads, KV_HEADS=(count - heads) // 2, SIZE=size,
        PADDED=triton.next_power_of_2(size), STORED=True, FORM=form, LARGEST=largest, num_warps=1,
    )  # fmt: skip


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x [T, H, D] of dense heads, in place; differentiable."""
    if torch.is_grad_enabled() and x.requires_grad:
        Turned.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    else:
        _turn(x, cos, sin)


class Turned(torch.autograd.Function):
    """Turning by the angle; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        _turn(x, cos, sin)
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        turned = grad.clone(memory_format=torch.contiguous_format)
        _turn(turned, cos, -sin)
        return turned, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    rows, count, size = x.shape
    if rows:
        turn_and_store[(rows, count)](
            x, cos, sin, None, None, None, x.stride(0), HEADS=count, KV_HEADS=0, SIZE=size,
            PADDED=triton.next_power_of_2(size), STORED=False, FORM="", LARGEST=0.0, num_warps=1,
        )  # fmt: skip
