"""out_MN = x_MK · W_NKᵀ, W = (q - zero) * scale by groups along K. M rows, K inputs, N outputs, G inputs a group.

Two codes share a byte, and they are half a group apart: byte j of a group holds code j in its low and code j + G / 2 in
its high four bits. So a kernel unpacks a group into two contiguous halves, with one mask and one shift, and multiplies
each by its own half of x; eight neighbours in one word, as GPTQ packs them, need a permutation in the loop.
The definition; a block of rows at a time is a float for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 15
GROUPS = (128, 64, 32)  # sizes that there are, the preferred one first
BLOCK = 2**22  # weights that are a float at a time


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [N, K] -> packed U8 [N, K / 2], scale F32 [N, K / G], zero U8 [N, K / G]. Rounded to nearest; a group's
    range always includes 0, which is met exactly."""
    blocks = weight.float().unflatten(1, (-1, group))
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scale = ((high - low) / LARGEST).clamp(min=1e-12)
    zero = (-low / scale).round().clamp(0, LARGEST)
    codes = (blocks / scale[..., None] + zero[..., None]).round().clamp(0, LARGEST).to(torch.uint8)
    return pack_halves(codes).flatten(1), scale, zero.to(torch.uint8)


def pack_halves(codes: Tensor) -> Tensor:
    """U8 [..., G] below 16 -> U8 [..., G / 2]."""
    first, second = codes.chunk(2, -1)
    return first | (second << 4)


def unpack_halves(packed: Tensor) -> Tensor:
    """The opposite of `pack_halves`."""
    return torch.cat([packed & LARGEST, packed >> 4], -1)


def dequantize_groups(packed: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant."""
    codes = unpack_halves(packed.unflatten(1, (scale.shape[1], -1)))
    return ((codes.float() - zero[..., None].float()) * scale[..., None].float()).flatten(1).to(dtype)


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """x [M, K] -> [M, N]."""
    blocks = _blocks(packed, scale, zero, x.dtype)
    return torch.cat([F.linear(x, weight) for _, weight in blocks], -1)


def int4_input_gradient(gradient: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """gradient [M, N] -> that of x [M, K]. Nothing of the float weight is kept between forward and backward."""
    out = gradient.new_zeros(len(gradient), 2 * packed.shape[1])
    for rows, weight in _blocks(packed, scale, zero, gradient.dtype):
        out.addmm_(gradient[:, rows], weight)
    return out


def _blocks(packed: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    size = max(1, BLOCK // (2 * packed.shape[1]))
    for start in range(0, len(packed), size):
        rows = slice(start, min(start + size, len(packed)))
        yield rows, dequantize_groups(packed[rows], scale[rows], zero[rows], dtype)
