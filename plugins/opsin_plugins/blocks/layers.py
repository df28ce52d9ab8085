"""Norms, activations and the two kinds of MLP that decoder and tower are made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from opsin_kernels.activations import Activation, activated, gated, gated_codes
from opsin_kernels.layer_norm import add_layer_norm, layer_norm
from opsin_kernels.rms_norm import add_rms_norm, add_rms_norm_codes, rms_norm, rms_norm_codes
from opsin_kernels.row_codes import RowCodes, RowForm
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.spec import Norm


def constants(values: Iterable[float]) -> Tensor:
    """In float32 whatever the model's type is, and made without arithmetic: on the meta device, where a model is
    sketched first, that would import torch._dynamo (seconds, and a folder in /tmp)."""
    return torch.tensor(list(values), dtype=torch.float32)


def parameter(*shape: int) -> nn.Parameter:
    """Frozen until a trainer says otherwise; filled by `checkpoint`."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class RMSNorm(nn.Module):
    """x / rms(x) * weight. In 16 bit the quotient is rounded before it meets the weight, as the published models do."""

    floor: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.register_buffer("floor", torch.tensor(eps, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.floor)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        return add_rms_norm(x, delta, self.weight, self.floor)

    def as_rows(self, x: Tensor, form: RowForm | None) -> Tensor | RowCodes:
        """The norm as a linear takes its rows (`Linear.row_form`)."""
        return self(x) if form is None else rms_norm_codes(x, self.weight, self.floor, form)

    def after_as_rows(self, x: Tensor, delta: Tensor, form: RowForm | None) -> tuple[Tensor, Tensor | RowCodes]:
        """x + delta, and its norm so."""
        if form is None:
            return self.after(x, delta)
        return add_rms_norm_codes(x, delta, self.weight, self.floor, form)


class LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(width), parameter(width), eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        return add_layer_norm(x, delta, self.weight, self.bias, self.eps)


def make_norm(kind: Norm, width: int, eps: float) -> RMSNorm | LayerNorm:
    return LayerNorm(width, eps) if kind == "layer" else RMSNorm(width, eps)


class PlainMLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, width: int, hidden: int, out: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, [hidden], bias)
        self.down = Linear(hidden, [out], bias)
        self.activation: Activation = activation

    def forward(self, x: Tensor, lora: Lora | None) -> Tensor:
        return self.down(activated(self.up(x, lora), self.activation), lora)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(width, [hidden, hidden], bias)
        self.down = Linear(hidden, [width], bias)
        self.activation: Activation = activation

    def forward(self, x: Tensor | RowCodes, lora: Lora | None) -> Tensor:
        gate_up, form = self.gate_up(x, lora), self.down.row_form(lora)
        if form is not None:
            return self.down(gated_codes(gate_up, self.activation, form), lora)
        return self.down(gated(gate_up, self.activation), lora)
