"""out_THD = x_THD turned by cos_TD, sin_TD (half-split). T tokens, H heads, D head size. Source: arXiv 2104.09864."""

from __future__ import annotations

import torch
from torch import Tensor


def angles_to_tables(angle: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles F32 [T, D/2] to cos and signed sin [T, 1, D], rounded to dtype as the published models do.

    The first half of sin is negated, so that turning is x * cos + swapped(x) * sin: 3 operations instead of 7, which
    is what counts for the few rows of a decode step.
    """
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, D], cos and sin [T, 1, D] from `angles_to_tables`. Returns [T, H, D]; differentiable."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`rotate` in place, for a slice of a fused projection whose other heads stay as they are; differentiable."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)
