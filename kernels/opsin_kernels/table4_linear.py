"""out_MN = x_MK · W_NKᵀ, W = table[q] * scale by groups along K: four bits that name one of 16 numbers, as those of
bitsandbytes' NF4 and FP4. Codes lie as in int4_linear. M rows, K inputs, N outputs, G groups. The definition."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels import float_blocks
from opsin_kernels.cpu.linear import native_product
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.int4_linear import unpack_groups


def dequantize(packed: Tensor, scale: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant. packed U8 [N, K / 2], scale [N, G], table F32 [16]."""
    codes = unpack_groups(packed, scale.shape[1])
    return (table[codes.int()] * scale[..., None].float()).flatten(1).to(dtype)


def table4_linear(x: Tensor, packed: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """x [M, K] -> [M, N]."""
    if uses_kernels(x):
        from opsin_kernels.gpu import quantized_linear as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.linear(x, Weight("table4", packed, scale, table=table))
    if (found := native_product("table4", x, packed, scale, table=table)) is not None:
        return found
    return float_blocks.product(x, len(packed), lambda r: dequantize(packed[r], scale[r], table, x.dtype))


def table4_input_gradient(gradient: Tensor, packed: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """gradient [M, N] -> that of x [M, K]."""
    if uses_kernels(gradient):
        from opsin_kernels.gpu import dequantize as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.input_gradient(gradient, Weight("table4", packed, scale, table=table))
    return float_blocks.input_gradient(
        gradient, 2 * packed.shape[1], lambda r: dequantize(packed[r], scale[r], table, gradient.dtype)
    )
