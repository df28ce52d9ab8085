"""out_MN = x_MK · W_NKᵀ, W = q * scale + offset by groups along K; Q is int8. M rows, K inputs, N outputs, G groups.

One group a row and no offset is the common case: (x · Qᵀ) * scale. The definition; it makes the weight a float for a
moment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels import float_blocks
from opsin_kernels.cpu.linear import native_product
from opsin_kernels.dispatch import uses_kernels

LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> Q I8 [N, K], scale F32 [N, 1]. Symmetric, rounded to nearest."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (weight / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize(quantized: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant. scale, offset [N, G]."""
    codes, factor = quantized.float().unflatten(1, (scale.shape[1], -1)), scale[..., None].float()
    meant = codes.mul_(factor) if offset is None else torch.addcmul(offset[..., None].float(), codes, factor)
    return meant.flatten(1).to(dtype)


def int8_linear(x: Tensor, quantized: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """x [M, K] -> [M, N]. In float16 the weight is scaled first: a sum of codes up to 127 overflows where the sum that
    is meant does not."""
    if uses_kernels(x):
        from opsin_kernels.gpu import quantized_linear as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.linear(x, Weight("int8", quantized, scale, offset))
    if (found := native_product("int8", x, quantized, scale, offset)) is not None:
        return found
    if offset is None and scale.shape[1] == 1 and x.dtype != torch.float16:
        return F.linear(x, quantized.to(x.dtype)) * scale[:, 0].to(x.dtype)
    return float_blocks.product(x, len(quantized), _rows(quantized, scale, offset, x.dtype))


def int8_input_gradient(gradient: Tensor, quantized: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """gradient [M, N] -> that of x [M, K]."""
    if uses_kernels(gradient):
        from opsin_kernels.gpu import dequantize as gpu
        from opsin_kernels.gpu.codes import Weight

        return gpu.input_gradient(gradient, Weight("int8", quantized, scale, offset))
    rows = _rows(quantized, scale, offset, gradient.dtype)
    return float_blocks.input_gradient(gradient, quantized.shape[1], rows)


def _rows(quantized: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> float_blocks.Rows:
    return lambda r: dequantize(quantized[r], scale[r], None if offset is None else offset[r], dtype)
