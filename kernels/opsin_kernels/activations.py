"""out_TN = activation(gate_TN) · up_TN, gate and up side by side in one tensor [T, 2N], or activation(x_TN) alone.
Source: arXiv 2002.05202 (GLU)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.cpu import rows as cpu
from opsin_kernels.cpu.native import LANES
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.row_codes import RowCodes, RowForm, quantize_rows_ref

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
    if activation == "silu" and gate_up.shape[-1] % (2 * LANES) == 0 and cpu.can_take(gate_up):
        return cpu.silu_gated(gate_up)
    return gated_ref(gate_up, activation)


def gated_codes(gate_up: Tensor, activation: Activation, form: RowForm) -> RowCodes:
    """gate_up [T, 2N] -> what `gated` makes of it, [T, N] in 8 bits, row by row, for a product with a weight in 8 bits.
    No gradient."""
    if uses_kernels(gate_up):
        from opsin_kernels.gpu import row_codes as gpu

        return gpu.gated_codes(gate_up, activation, form)
    return quantize_rows_ref(gated(gate_up, activation), form)


def activated(x: Tensor, activation: Activation) -> Tensor:
    """x [..., N] -> [..., N]; differentiable."""
    if uses_kernels(x):
        from opsin_kernels.gpu import activations as gpu

        return gpu.activated(x, activation)
    return ACTIVATIONS[activation](x)


def gated_ref(gate_up: Tensor, activation: Activation) -> Tensor:
    """The definition of `gated`."""
    if torch.is_grad_enabled() and gate_up.requires_grad:
        out: Tensor = _Gated.apply(gate_up, activation)  # type: ignore[no-untyped-call]
        return out
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up


class _Gated(torch.autograd.Function):
    """Keeps gate and up, and not what was made of the gate: that is a third of what an MLP would keep."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        ctx.activation = activation
        ctx.save_for_backward(gate_up)
        return ACTIVATIONS[activation](gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            activated = ACTIVATIONS[ctx.activation](leaf)
        out = torch.empty_like(gate_up)
        of_gate, of_up = out.chunk(2, -1)
        torch.mul(gradient, activated.detach(), out=of_up)
        of_gate.copy_(torch.autograd.grad(activated, leaf, gradient * up)[0])
        return out, None
