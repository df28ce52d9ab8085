"""Keys and values in 8 bits: each row of a head is D codes and, in the four bytes behind them, a float32 scale of its
own. So a pool of them is one tensor [blocks, block, 2K, D + 4] of the codes' type, I8 or F8 (e4m3), and a row is
written or moved like any other."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # by name
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # code
SCALE_BYTES = 4


def quantize(rows: Tensor, kind: torch.dtype = torch.int8) -> Tensor:
    """[..., D] -> [..., D + 4] of kind. Symmetric, rounded to nearest."""
    numbers, largest = rows.float(), LARGEST[kind]
    scale = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-12) / largest
    codes = (numbers / scale).clamp(-largest, largest)
    codes = codes.round().to(kind) if kind == torch.int8 else codes.to(kind)
    return torch.cat([codes.view(torch.int8), scale.view(torch.int8)], -1).view(kind)


def dequantize(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., D + 4] -> the numbers that are meant, [..., D]."""
    scale = rows.view(torch.int8)[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (rows[..., :-SCALE_BYTES].float() * scale).to(dtype)


def scales_of(rows: Tensor) -> Tensor:
    """[..., D + 4], D a multiple of 4 -> F32 [...], the same memory: as a kernel reads them."""
    return rows.view(torch.float32)[..., -1]
