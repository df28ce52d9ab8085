"""out_TN = (x_TN - mean(x_T)) / std(x_T) · w_N + b_N. T rows, N values. Source: arXiv 1607.06450.

Everything is rounded once, at the end, as torch does. The backward pass is torch's own on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., N], weight and bias [N] -> [..., N]; differentiable. Accumulates in float32."""
    if uses_kernels(x) and not _trained(x, weight, bias):
        from opsin_kernels.gpu import layer_norm as gpu

        return gpu.layer_norm(x, weight, bias, eps)
    return layer_norm_ref(x, weight, bias, eps)


def add_layer_norm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and delta [..., N] -> their sum, and its norm; differentiable. One pass over memory instead of two on a GPU."""
    if uses_kernels(x) and not _trained(x, delta, weight, bias):
        from opsin_kernels.gpu import layer_norm as gpu

        return gpu.add_layer_norm(x, delta, weight, bias, eps)
    added = x + delta
    return added, layer_norm_ref(added, weight, bias, eps)


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The definition of `layer_norm`."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _trained(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
