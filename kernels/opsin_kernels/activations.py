"""out_TN = activation(gate_TN) · up_TN, gate and up side by side in one tensor [T, 2N], or activation(x_TN) alone.
Source: arXiv 2002.05202 (GLU)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """gate_up [..., 2N], the gate first -> [..., N]; differentiable. The activated gate is rounded before the product,
    as the published models do."""
    if uses_kernels(gate_up):
        from opsin_kernels.gpu import activations as gpu

        return gpu.gated(gate_up, activation)
    return gated_ref(gate_up, activation)


def activated(x: Tensor, activation: Activation) -> Tensor:
    """x [..., N] -> [..., N]; differentiable."""
    if uses_kernels(x):
        from opsin_kernels.gpu import activations as gpu

        return gpu.activated(x, activation)
    return ACTIVATIONS[activation](x)


def gated_ref(gate_up: Tensor, activation: Activation) -> Tensor:
    """The definition of `gated`."""
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up
