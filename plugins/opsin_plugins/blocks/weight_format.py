"""How the weight of a linear is stored: as it is, or as codes.

Each format is allocate (its constructor), fill, matmul and input_gradient. The last is what a backward pass needs of a
frozen weight: autograd over a quantized matmul would keep the float weight instead, 4 bytes for each that is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opsin_kernels import float_blocks
from opsin_kernels.cpu.linear import PLAIN, NativeWeight
from opsin_kernels.cpu.native import LANES, can_run
from opsin_kernels.cpu.rows import can_take
from opsin_kernels.linear import linear
from opsin_kernels.row_codes import RowCodes
from opsin_plugins.blocks.codes import Codes


class WeightFormat(nn.Module, ABC):
    """The weight [outputs, inputs] of a linear, or of some of its rows; unfilled at first.

    bytes: of all its tensors.
    """

    name: ClassVar[str]
    row_kind: torch.dtype | None = None  # of the codes that rows are multiplied as; None: they are as they are
    _found: NativeWeight | None  # looked up once, and not in every step: attributes of modules are slow

    @classmethod
    def holds(cls, inputs: int, outputs: int) -> bool:
        """Whether a weight of this shape can be stored so."""
        return True

    @abstractmethod
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self._found = inputs, outputs, None

    @abstractmethod
    def fill(self, start: int, weight: Tensor | Codes) -> None:
        """Takes rows `start` and following, [rows, inputs], of any float type, or codes of the format's own kind."""

    @abstractmethod
    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, inputs] -> x · Wᵀ + bias [T, outputs], a tensor of its own."""

    def matmul_codes(self, rows: RowCodes, bias: Tensor | None = None) -> Tensor:
        """As `matmul`, of rows that are codes of `row_kind` already. No gradient."""
        raise NotImplementedError(f"{self.name} takes no codes")

    @abstractmethod
    def input_gradient(self, gradient: Tensor) -> Tensor:
        """gradient [T, outputs] -> gradient · W [T, inputs]."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight that is meant, [outputs, inputs], in the default type."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """ids I64 [T] -> these rows of the weight [T, inputs], as an embedding looks them up."""

    def native(self) -> NativeWeight | None:
        """As C on a processor takes it, for inputs in their own order; None: it does not."""
        return None

    def _apply(self, *how: Any, **given: Any) -> WeightFormat:
        """Tensors are replaced when a module is moved."""
        self._found = None
        super()._apply(*how, **given)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy has tensors of its own."""
        return {**self.__dict__, "_found": None}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))


Form = Callable[[int, int], WeightFormat]
"""Makes one of inputs and outputs."""


class Dense(WeightFormat):
    """As it is. weight [outputs, inputs]."""

    name = "dense"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)

    def fill(self, start: int, weight: Tensor | Codes) -> None:
        numbers = weight.dequantized() if isinstance(weight, Codes) else weight
        self.weight.data[start : start + len(numbers)].copy_(numbers)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        native = None if torch.is_grad_enabled() and x.requires_grad else self.native()
        if native is None or not can_take(x):
            return linear(x, self.weight, bias)
        out = native.product(x)
        return out if bias is None else out.add_(bias)

    def native(self) -> NativeWeight | None:
        if self.weight.dtype != torch.float32 or self.weight.requires_grad:
            return None
        found = self._found or NativeWeight("float32", self.weight)
        self._found = found
        return found if found.fits else None

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.weight

    def dequantized(self) -> Tensor:
        return self.weight.detach()

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Quantized(WeightFormat):
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
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Quantized) -> Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]
        return weight.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.input_gradient(gradient), None  # type: ignore[attr-defined]


class Half(Quantized):
    """In the 16 bits in which it was published, of a model in float32: the same numbers in half the memory, for
    processors whose C multiplies them as they are. weight [outputs, inputs]."""

    name = "half"
    weight: Tensor

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=dtype))

    @classmethod
    def holds(cls, inputs: int, outputs: int) -> bool:
        return inputs % LANES == 0

    def fill(self, start: int, weight: Tensor | Codes) -> None:
        numbers = weight.dequantized() if isinstance(weight, Codes) else weight
        self.weight[start : start + len(numbers)].copy_(numbers)

    def product(self, x: Tensor) -> Tensor:
        native = self.native()
        if native is not None and can_run(x):
            return native.product(x)
        return float_blocks.product(x, self.outputs, lambda block: self.weight[block].to(x.dtype))

    def native(self) -> NativeWeight | None:
        found = self._found or NativeWeight(PLAIN[self.weight.dtype], self.weight)
        self._found = found
        return found if found.fits else None

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return float_blocks.input_gradient(gradient, self.inputs, lambda block: self.weight[block].to(gradient.dtype))

    def dequantized(self) -> Tensor:
        return self.weight.float()

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()
