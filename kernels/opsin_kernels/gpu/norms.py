"""RMSNorm, one row a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_rows(
    x_ptr,  # [T, N], rows `stride` apart
    weight_ptr,  # [N]
    floor_ptr,  # F32 [], epsilon
    out_ptr,  # [T, N], dense
    stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROUNDED: tl.constexpr,  # whether the quotient is rounded before it meets the weight
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < SIZE
    x = tl.load(x_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scaled = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + tl.load(floor_ptr))
    kind = out_ptr.dtype.element_ty
    if ROUNDED:
        scaled = scaled.to(kind).to(tl.float32)
    tl.store(out_ptr + row * SIZE + at, (scaled * weight).to(kind), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
    """x [..., N] of any row stride that its last two dimensions allow."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    if len(rows):
        size, padded = x.shape[-1], triton.next_power_of_2(x.shape[-1])
        warps = 4 if padded <= 2048 else 8
        rms_norm_rows[(len(rows),)](
            rows, weight, floor, out, rows.stride(0), SIZE=size, PADDED=padded,
            ROUNDED=x.dtype != torch.float32, num_warps=warps,
        )  # fmt: skip
    return out
