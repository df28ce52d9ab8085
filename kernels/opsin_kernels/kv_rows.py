"""Keys and values in 8 bits: each row of a head is D codes and, in the four bytes behind them, a float32 scale of its
own. So a pool of them is one tensor I8 [blocks, block, 2K, D + 4], and a row is written or moved like any other."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
SCALE_BYTES = 4


def quantize(rows: Tensor) -> Tensor:
    """[..., D] -> I8 [..., D + 4]. Symmetric, rounded to nearest."""
    numbers = rows.float()
    scale = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    codes = (numbers / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return torch.cat([codes, scale.view(torch.int8)], -1)


def dequantize(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """I8 [..., D + 4] -> the numbers that are meant, [..., D]."""
    codes, scale = rows[..., :-SCALE_BYTES], rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (codes.float() * scale).to(dtype)
