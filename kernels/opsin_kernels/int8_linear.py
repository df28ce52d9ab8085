"""out_MN = (x_MK · Q_NKᵀ) * scale_N. M rows, K inputs, N outputs; Q is int8.

Symmetric, one scale a row of the weight, rounded to nearest. The definition; it makes the weight a float for a moment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> Q I8 [N, K], scale F32 [N]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=1e-12) / LARGEST
    return (weight / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize_rows(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that is meant."""
    return (quantized.float() * scale[:, None]).to(dtype)


def int8_linear(x: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
    """x [M, K], Q I8 [N, K], scale F32 [N] -> [M, N]. In float16 the weight is scaled first: a sum of codes up to 127
    overflows where the sum that is meant does not."""
    weight, scale = quantized.to(x.dtype), scale.to(x.dtype)
    if x.dtype == torch.float16:
        return F.linear(x, weight * scale[:, None])
    return F.linear(x, weight) * scale


def int8_input_gradient(gradient: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
    """gradient [M, N] -> that of x [M, K]. Nothing of the float weight is kept between forward and backward."""
    return (gradient * scale.to(gradient.dtype)) @ quantized.to(gradient.dtype)
