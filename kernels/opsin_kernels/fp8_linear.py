"""out_MN = x_MK · W_NKᵀ, W = q * scale by groups along K; Q is float8 (e4m3). M rows, K inputs, N outputs, G groups.
The definition; x stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels import float_blocks
from opsin_kernels.cpu.linear import native_product
from opsin_kernels.dispatch import uses_kernels

LARGEST = 448.0


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> Q F8 [N, K], scale F32 [N, 1]. Rounded to nearest."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (weight / scale).to(torch.float8_e4m3fn), scale


def dequantize(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant. Q F8 [N, K], scale F32 [N, G]."""
    return (quantized.float().unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1).to(dtype)


def fp8_linear(x: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
    """x [M, K] -> [M, N]."""
    if uses_kernels(x):
        from opsin_kernels.gpu import quantized_linear as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.linear(x, Weight("fp8", quantized, scale))
    if (found := native_product("fp8", x, quantized, scale)) is not None:
        return found
    return float_blocks.product(x, len(quantized), lambda r: dequantize(quantized[r], scale[r], x.dtype))


def fp8_input_gradient(gradient: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
    """gradient [M, N] -> that of x [M, K]."""
    if uses_kernels(gradient):
        from opsin_kernels.gpu import dequantize as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.input_gradient(gradient, Weight("fp8", quantized, scale))
    return float_blocks.input_gradient(
        gradient, quantized.shape[1], lambda r: dequantize(quantized[r], scale[r], gradient.dtype)
    )
