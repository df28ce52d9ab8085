"""What blocks hand on and linears ask: the adapters of a batch's rows, in slots or in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from opsin_plugins.blocks.weight_format import WeightFormat


class FrozenLinear(Protocol):
    """A `Linear`, as adapters see it."""

    name: str
    stored: WeightFormat
    bias: nn.Parameter | None


class Lora(ABC):
    """Of the rows of one batch, which lie in runs: a sequence's of a step, or a picture's. takes_codes: whether rows
    may reach a linear as codes, to whose product `add` then adds."""

    takes_codes: ClassVar[bool] = False

    @abstractmethod
    def resized(self, counts: Sequence[int]) -> Lora:
        """The same runs with other numbers of rows, 0 among them: a picture's features in place of its patches, a
        prompt's last row in place of all."""

    @abstractmethod
    def of_runs(self, chosen: Sequence[int]) -> Lora:
        """Only these runs, by number."""

    @abstractmethod
    def projector_of(self, run: int) -> nn.Module | None:
        """The projector that the adapter of a run brings; None: it has the model's own."""

    @abstractmethod
    def applied(self, linear: FrozenLinear, x: Tensor) -> Tensor:
        """x [T, K] -> x · Wᵀ + bias, and what adapters add to it [T, N]."""

    @abstractmethod
    def add(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        """out [T, N], which a weight that is no `Linear` (a tied head) has made of x [T, K], and what adapters add to
        linear `name`."""
