"""Tokens that may not follow, a block of a row a program. Only what changes is written."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def forbid_tokens(
    logits_ptr,  # [R, V], rows `stride` apart
    mask_ptr,  # I32 [R, W], rows `mask_stride` apart
    stride,
    mask_stride,
    size,  # V
    STEP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = at < size
    word = tl.load(mask_ptr + row * mask_stride + at // 32, mask=inside, other=-1)
    forbidden = ((word >> (at % 32)) & 1) == 0
    tl.store(logits_ptr + row * stride + at, -float("inf"), mask=inside & forbidden)


def forbid_(logits: Tensor, mask: Tensor) -> None:
    rows, size = logits.shape
    if rows:
        forbid_tokens[(rows, triton.cdiv(size, BLOCK))](
            logits, mask, logits.stride(0), mask.stride(0), size, STEP=BLOCK, num_warps=8
        )
