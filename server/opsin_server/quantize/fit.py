"""Scales of groups that lose least: the range of a group is worth cutting where few numbers need its ends."""

from __future__ import annotations

import torch
from torch import Tensor

MIDDLE = 8  # the code of 0, of 16
SHRINKS = tuple(1.0 - 0.04 * i for i in range(12))  # of the range, that are tried
POWER = 2.4  # of the errors that are summed up: a little more than their squares, so that outliers count


def fit_groups(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight F32 [N, K] -> codes U8 [N, K] below 16, scale [N, K / group] of a type; (code - 8) * scale is meant.
    Of each group's range, shrunk by several factors, the one whose numbers are nearest is taken. Without zeros of their
    own: few programs read them packed."""
    blocks = weight.unflatten(1, (-1, group))
    widest = torch.maximum(-blocks.amin(2) / MIDDLE, blocks.amax(2) / (MIDDLE - 1)).clamp(min=1e-12)
    best, scale = torch.full_like(widest, torch.inf), widest
    for shrink in SHRINKS:
        tried = (widest * shrink).to(dtype).float()
        error = ((_codes(blocks, tried) - MIDDLE) * tried[..., None] - blocks).abs().pow(POWER).sum(2)
        scale, best = torch.where(error < best, tried, scale), torch.minimum(error, best)
    return _codes(blocks, scale).to(torch.uint8).flatten(1), scale.to(dtype)


def _codes(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / scale[..., None] + MIDDLE).round().clamp(0, 2 * MIDDLE - 1)
