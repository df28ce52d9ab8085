"""out_THD = x_THD turned by cos_TD, sin_TD (half-split). T tokens, H heads, D head size. Source: arXiv 2104.09864."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels.attention import write_kv
from opsin_kernels.cpu import decode
from opsin_kernels.dispatch import uses_kernels


def angles_to_tables(angle: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles F32 [T, D/2] to cos and signed sin [T, 1, D], rounded to dtype as the published models do.

    The first half of sin is negated, so that turning is x * cos + swapped(x) * sin: 3 operations instead of 7, which
    is what counts for the few rows of a decode step.
    """
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x [T, H, D] turned in place; cos and sin [T, 1, D] from `angles_to_tables`. x may be a slice of a fused
    projection whose other heads stay as they are; differentiable."""
    if uses_kernels(x):
        from opsin_kernels.gpu import rotary as gpu

        gpu.rotate_(x, cos, sin)
        return
    rotate_ref_(x, cos, sin)


def rotate_ref_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The definition of `rotate_`."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def rotate_and_store(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> Tensor:
    """qkv [T, H + 2K, D], changed in place; pool [blocks, block, 2K, D] takes the turned keys and the values at slots
    I64 [T]. Returns the turned queries [T, H, D], a view. Serving only: the pool has no gradient."""
    if uses_kernels(qkv):
        from opsin_kernels.gpu import rotary as gpu

        gpu.rotate_and_store(qkv, heads, cos, sin, pool, slots)
        return qkv[:, :heads]
    if decode.can_turn(qkv, cos, pool, slots):
        return decode.turn_and_store(qkv, heads, cos, sin, pool, slots)
    return rotate_and_store_ref(qkv, heads, cos, sin, pool, slots)


def rotate_and_store_ref(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> Tensor:
    """The definition of `rotate_and_store`."""
    kv_heads = (qkv.shape[1] - heads) // 2
    rotate_ref_(qkv[:, : heads + kv_heads], cos, sin)
    write_kv(qkv[:, heads:], pool, slots)
    return qkv[:, :heads]
