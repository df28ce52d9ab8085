"""How the weight of a linear is stored: as it is, as 8-bit rows, or as 4-bit groups.

Each format is allocate (its constructor), fill, matmul and input_gradient. The last is what a backward pass needs of a
frozen weight: autograd over a quantized matmul would keep the float weight instead, 4 bytes for each that is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opsin_kernels.int4_linear import (
    GROUPS,
    dequantize_groups,
    int4_input_gradient,
    int4_linear,
    quantize_groups,
)
from opsin_kernels.int8_linear import dequantize_rows, int8_input_gradient, int8_linear, quantize_rows
from opsin_kernels.linear import linear


class WeightFormat(nn.Module, ABC):
    """The weight [outputs, inputs] of a linear, or of some of its segments; unfilled at first.

    bytes: of all its tensors.
    """

    name: ClassVar[str]

    @classmethod
    def holds(cls, inputs: int, outputs: int) -> bool:
        """Whether a weight of this shape can be stored so."""
        return True

    @abstractmethod
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

    @abstractmethod
    def fill(self, start: int, weight: Tensor) -> None:
        """Takes rows `start` and following, [rows, inputs], of any float type."""

    @abstractmethod
    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, inputs] -> x · Wᵀ + bias [T, outputs], a tensor of its own."""

    @abstractmethod
    def input_gradient(self, gradient: Tensor) -> Tensor:
        """gradient [T, outputs] -> gradient · W [T, inputs]."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight that is meant, [outputs, inputs], in the default type."""

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))


class Dense(WeightFormat):
    """As it is. weight [outputs, inputs]."""

    name = "dense"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)

    def fill(self, start: int, weight: Tensor) -> None:
        self.weight.data[start : start + len(weight)].copy_(weight)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, self.weight, bias)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.weight

    def dequantized(self) -> Tensor:
        return self.weight.detach()


class _Quantized(WeightFormat):
    """A weight that has no gradient of its own; matmul is differentiable in x, by `input_gradient`."""

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        differentiates = torch.is_grad_enabled() and x.requires_grad
        out: Tensor = _FrozenMatmul.apply(x, self) if differentiates else self.product(x)  # type: ignore[no-untyped-call]
        return out if bias is None else out + bias

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x · Wᵀ, as no backward pass sees it."""


class _FrozenMatmul(torch.autograd.Function):
    """Keeps neither x nor a float weight: the gradient of x needs none."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: _Quantized) -> Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]
        return weight.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.input_gradient(gradient), None  # type: ignore[attr-defined]


class Int8Rows(_Quantized):
    """Symmetric 8-bit rows. quantized I8 [outputs, inputs], scale F32 [outputs]. Source: opsin_kernels.int8_linear."""

    name = "int8"
    quantized: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("quantized", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(outputs, dtype=torch.float32))

    def fill(self, start: int, weight: Tensor) -> None:
        rows = slice(start, start + len(weight))
        self.quantized[rows], self.scale[rows] = quantize_rows(weight.to(self.scale.device))

    def product(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.quantized, self.scale)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return int8_input_gradient(gradient, self.quantized, self.scale)

    def dequantized(self) -> Tensor:
        return dequantize_rows(self.quantized, self.scale, torch.get_default_dtype())


class Int4Groups(_Quantized):
    """4-bit codes with a scale and a zero for each group of inputs, the largest group that divides them. packed U8
    [outputs, inputs / 2], scale [outputs, groups] in the model's type, zero U8. Source: opsin_kernels.int4_linear."""

    name = "int4"
    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.group = next(group for group in GROUPS if inputs % group == 0)
        self.register_buffer("packed", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(outputs, inputs // self.group))
        self.register_buffer("zero", torch.empty(outputs, inputs // self.group, dtype=torch.uint8))

    @classmethod
    def holds(cls, inputs: int, outputs: int) -> bool:
        return any(inputs % group == 0 for group in GROUPS)

    def fill(self, start: int, weight: Tensor) -> None:
        rows = slice(start, start + len(weight))
        found = quantize_groups(weight.to(self.scale.device), self.group)
        self.packed[rows], self.scale[rows], self.zero[rows] = found

    def product(self, x: Tensor) -> Tensor:
        return int4_linear(x, self.packed, self.scale, self.zero)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return int4_input_gradient(gradient, self.packed, self.scale, self.zero)

    def dequantized(self) -> Tensor:
        return dequantize_groups(self.packed, self.scale, self.zero, torch.get_default_dtype())


FORMATS: Mapping[str, type[WeightFormat]] = {form.name: form for form in (Dense, Int8Rows, Int4Groups)}
