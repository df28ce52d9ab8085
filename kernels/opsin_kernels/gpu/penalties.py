"""Penalties at single places of the logits, a block of places a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit(do_not_specialize=["count"])
def penalize_places(
    logits_ptr,  # [R, V], rows `stride` apart
    where_ptr,  # I64 [2, N]: rows, tokens
    what_ptr,  # F32 [2, N]: factors, shifts
    stride,
    count,  # N
    STEP: tl.constexpr,
    MOST: tl.constexpr,  # the largest number of the logits' type
):
    at = tl.program_id(0) * STEP + tl.arange(0, STEP)
    inside = at < count
    row = tl.load(where_ptr + at, mask=inside, other=0)
    token = tl.load(where_ptr + count + at, mask=inside, other=0)
    factor = tl.load(what_ptr + at, mask=inside, other=1.0)
    shift = tl.load(what_ptr + count + at, mask=inside, other=0.0)
    place = logits_ptr + row * stride + token
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(x > 0, x / factor, x * factor) - shift
    x = tl.where(x > MOST, MOST, x)  # (a NaN stays one)
    tl.store(place, x.to(logits_ptr.dtype.element_ty), mask=inside)


def penalize_(logits: Tensor, where: Tensor, what: Tensor) -> None:
    """logits [R, V] with dense rows, in place."""
    count = where.shape[1]
    most = torch.finfo(logits.dtype).max
    penalize_places[(triton.cdiv(count, BLOCK),)](
        logits, where, what, logits.stride(0), count, STEP=BLOCK, MOST=most, num_warps=4
    )
