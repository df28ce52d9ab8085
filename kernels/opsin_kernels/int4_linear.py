"""out_MN = x_MK · W_NKᵀ, W = q * scale + offset by groups along K. M rows, K inputs, N outputs, G inputs a group.

Two codes share a byte, and they are half a group apart: byte j of a group holds code j in its low and code j + G / 2 in
its high four bits. So a kernel unpacks a group into two contiguous halves, with one mask and one shift, and multiplies
each by its own half of x; eight neighbours in one word, as GPTQ packs them, need a permutation in the loop.

An offset, and no zero in codes: it holds both kinds that files have (GPTQ's whole zeros, GGUF's minima, where a scale
may be 0), and x · W is scale * (x · q) + offset * sum(x). The definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels import float_blocks
from opsin_kernels.cpu.linear import native_product
from opsin_kernels.dispatch import uses_kernels

LARGEST = 15
GROUPS = (128, 64, 32)  # sizes that there are, the preferred one first


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [N, K] -> codes U8 [N, K], scale and offset F32 [N, K / G]. Rounded to nearest; a group's range always
    includes 0, which is met exactly."""
    blocks = weight.float().unflatten(1, (-1, group))
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scale = ((high - low) / LARGEST).clamp(min=1e-12)
    zero = (-low / scale).round().clamp(0, LARGEST)
    codes = (blocks / scale[..., None] + zero[..., None]).round().clamp(0, LARGEST).to(torch.uint8)
    return codes.flatten(1), scale, -zero * scale


def pack_groups(codes: Tensor, group: int) -> Tensor:
    """U8 [N, K] below 16 -> U8 [N, K / 2]."""
    first, second = codes.unflatten(1, (-1, group)).chunk(2, -1)
    return (first | (second << 4)).flatten(1)


def unpack_groups(packed: Tensor, groups: int) -> Tensor:
    """The opposite: U8 [N, K / 2] -> U8 [N, groups, G]."""
    halves = packed.unflatten(1, (groups, -1))
    return torch.cat([halves & LARGEST, halves >> 4], -1)


def dequantize_groups(packed: Tensor, scale: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant."""
    meant = unpack_groups(packed, scale.shape[1]).float().mul_(scale[..., None].float())
    return meant.add_(offset[..., None].float()).flatten(1).to(dtype)  # (rounded in between: a 0 stays one)


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """x [M, K] -> [M, N]."""
    if uses_kernels(x):
        from opsin_kernels.gpu import quantized_linear as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.linear(x, Weight("int4", packed, scale, offset))
    if (found := native_product("int4", x, packed, scale, offset)) is not None:
        return found
    return float_blocks.product(x, len(packed), lambda r: dequantize_groups(packed[r], scale[r], offset[r], x.dtype))


def int4_input_gradient(gradient: Tensor, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """gradient [M, N] -> that of x [M, K]."""
    if uses_kernels(gradient):
        from opsin_kernels.gpu import dequantize as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.input_gradient(gradient, Weight("int4", packed, scale, offset))
    return float_blocks.input_gradient(
        gradient, 2 * packed.shape[1], lambda r: dequantize_groups(packed[r], scale[r], offset[r], gradient.dtype)
    )
