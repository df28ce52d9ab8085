"""Norms, activations and the two kinds of MLP that decoder and tower are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.spec import Activation, Norm


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def constants(values: Iterable[float]) -> Tensor:
    """In float32 whatever the model's type is, and made without arithmetic: on the meta device, where a model is
    sketched first, that would import torch._dynamo (seconds, and a folder in /tmp)."""
    return torch.tensor(list(values), dtype=torch.float32)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


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
        if x.dtype == torch.float32:
            return x * self._scale(x) * self.weight
        wide = x.float()
        return (wide * self._scale(wide)).to(x.dtype) * self.weight

    def _scale(self, x: Tensor) -> Tensor:
        """1 / rms [T, 1]. Through the vector norm: 11 µs for a row of 192, against 16 for F.rms_norm."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self.floor, norm, norm, value=1 / x.shape[-1]).rsqrt()


class LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(width), parameter(width), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(kind: Norm, width: int, eps: float) -> nn.Module:
    return LayerNorm(width, eps) if kind == "layer" else RMSNorm(width, eps)


class PlainMLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(
        self, width: int, hidden: int, out: int, activation: Activation, bias: bool, quantize: Quantize
    ) -> None:
        super().__init__()
        self.up = Linear(width, [hidden], bias, quantize)
        self.down = Linear(hidden, [out], bias, quantize)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, slot: Tensor | None) -> Tensor:
        return self.down(self.activation(self.up(x, slot)), slot)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool, quantize: Quantize) -> None:
        super().__init__()
        self.gate_up = Linear(width, [hidden, hidden], bias, quantize)
        self.down = Linear(hidden, [width], bias, quantize)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, slot: Tensor | None) -> Tensor:
        gate, up = self.gate_up(x, slot).chunk(2, -1)
        return self.down(self.activation(gate) * up, slot)
