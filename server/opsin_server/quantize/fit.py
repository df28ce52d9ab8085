"""Scales of groups that lose least: the range of a group is worth cutting where few numbers need its ends."""

from __future__ import annotations

import torch
from torch import Tensor

MIDDLE = 8  # the code of 0, of 16
LARGEST = MIDDLE - 1  # level above it
SHRINKS = tuple(1.0 - 0.04 * i for i in range(12))  # of the range, that are tried
POWER = 2.4  # of the errors that are summed up: a little more than their squares, so that outliers count


def fit_groups(weight: Tensor, group: int, dtype: torch.dtype, counts: Tensor | None = None) -> Tensor:
    """weight F32 [N, K] -> scale F32 [N, K / group], as a type holds it; level * scale is meant. Of each group's range,
    shrunk by several factors, the one whose numbers are nearest is taken. counts [K]: how much an input's errors do,
    where data say so. Without zeros of their own: few programs read them packed."""
    blocks = weight.unflatten(1, (-1, group))
    weights = None if counts is None else counts.unflatten(0, (-1, group))
    widest = torch.maximum(-blocks.amin(2) / MIDDLE, blocks.amax(2) / LARGEST).clamp(min=1e-12)
    best, scale = torch.full_like(widest, torch.inf), widest
    for shrink in SHRINKS:
        tried = (widest * shrink).to(dtype).float()
        errors = (nearest_levels(blocks / tried[..., None]) * tried[..., None] - blocks).abs().pow(POWER)
        error = (errors if weights is None else errors * weights).sum(2)
        scale, best = torch.where(error < best, tried, scale), torch.minimum(error, best)
    return scale


def nearest_levels(numbers: Tensor) -> Tensor:
    """Numbers in units of their scale -> levels from -8 to 7."""
    return numbers.round().clamp(-MIDDLE, LARGEST)
