"""The weights of adapters on the device: a fixed number of slots, each with room for factors of every linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from opsin_kernels.lora import SideBySide, SlotFactors, column_tiles
from opsin_kernels.transfer import moved, on_device
from opsin_plugins.spec import Linears, LinearShape, SpecError


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one segment of a linear: y += (x · aᵀ) · b. a [rank, inputs]; b [rank, outputs], which
    holds the adapter's scale."""

    a: Tensor
    b: Tensor


AdapterFactors = Mapping[str, Sequence[Factors | None]]
"""Of each linear that an adapter changes: factors of each of its segments, None where it leaves one alone."""


@dataclass(frozen=True)
class AdapterWeights:
    """projector: parameters of the projector that were trained whole, by their paths in the model."""

    factors: AdapterFactors
    projector: Mapping[str, Tensor] = field(default_factory=dict)


class ProjectorSlots(Protocol):
    """Projectors of adapters that have one of their own (`trained_projectors.TrainedProjectors`)."""

    def load(self, slot: int, trained: Mapping[str, Tensor]) -> None:
        """Nothing trained: the adapter in this slot uses the model's."""

    def __getitem__(self, slot: int) -> nn.Module | None:
        """None: the model's own."""


class LinearSlots:
    """One linear's part of all slots. What an adapter has no factors for is zeros."""

    def __init__(self, shape: LinearShape, slots: int, rank: int, device: torch.device, dtype: torch.dtype) -> None:
        ends = accumulate(shape.segments)
        self.columns = [slice(end - size, end) for end, size in zip(ends, shape.segments, strict=True)]
        self.stacked = SlotFactors(
            a=torch.zeros(slots, len(shape.segments), rank, shape.inputs, device=device, dtype=dtype),
            b=torch.zeros(slots, rank, shape.outputs, device=device, dtype=dtype),
            ranks=torch.zeros(slots, len(shape.segments), device=device, dtype=torch.int32),
            columns=self.columns,
            tiles=on_device(column_tiles(self.columns), torch.int32, device),
        )
        self._factors: list[list[Factors | None]] = [[] for _ in range(slots)]
        self._beside: SideBySide | None = None

    def changed_by(self, slot: int) -> bool:
        """Whether the adapter in slot 1 or following has any factors here."""
        return bool(self._factors[slot - 1])

    def factors(self, slot: int) -> Sequence[Factors | None]:
        """Of each segment, without the rows that fill a slot up to its rank; empty: the adapter changes nothing."""
        return self._factors[slot - 1]

    def beside(self, slots: Set[int]) -> SideBySide:
        """The factors of these slots, all of which change this linear, close together; perhaps of others too. A copy of
        one set is kept, since the next steps want the same one or what is left of it."""
        kept = self._beside
        if kept is None or not slots <= kept.slots or len(kept.slots) > 2 * len(slots):
            kept = self._beside = self._lay(slots)
        return kept

    def _lay(self, slots: Set[int]) -> SideBySide:
        lines: list[Tensor] = []
        owners: list[int] = []
        segments = []
        for segment, columns in enumerate(self.columns):
            changed = [(slot, f) for slot in slots if (f := self._factors[slot - 1][segment]) is not None]
            begin = len(owners)
            for slot, factors in changed:
                lines.append(factors.a)
                owners += [slot] * len(factors.a)
            if changed:
                segments.append((columns, slice(begin, len(owners)), torch.cat([f.b for _, f in changed])))
        a, of_lines = torch.cat(lines), torch.tensor(owners)
        return SideBySide(a, segments, moved(of_lines, a.device), of_lines.numpy().tobytes(), frozenset(slots))

    def load(self, slot: int, given: Sequence[Factors | None]) -> None:
        """Copies; `given` has one for each segment."""
        self.clear(slot)
        if all(factors is None for factors in given):
            return
        a, b, held = self.stacked.a[slot - 1], self.stacked.b[slot - 1], self._factors[slot - 1]
        for segment, (factors, columns) in enumerate(zip(given, self.columns, strict=True)):
            if factors is None:
                held.append(None)
                continue
            mine = Factors(a[segment, : len(factors.a)], b[: len(factors.a), columns])
            mine.a.copy_(factors.a, non_blocking=True)
            mine.b.copy_(factors.b, non_blocking=True)
            self.stacked.ranks[slot - 1, segment].fill_(len(factors.a))
            held.append(mine)

    def clear(self, slot: int) -> None:
        if self._factors[slot - 1]:
            self._factors[slot - 1] = []
            self._beside = None
            for tensor in (self.stacked.a, self.stacked.b, self.stacked.ranks):
                tensor[slot - 1].zero_()

    @property
    def bytes(self) -> int:
        return self.stacked.a.nbytes + self.stacked.b.nbytes


class AdapterSlots:
    """count slots of `rank`, numbered from 1 on (0 is the base model), on the model's device and in its type.

    A slot's contents change between two steps only, and never while a launched step may read it.
    """

    def __init__(
        self,
        linears: Linears,
        count: int,
        rank: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype = torch.float32,
        projectors: ProjectorSlots | None = None,
    ) -> None:
        self.count, self.projectors = count, projectors
        self._linears = {name: LinearSlots(shape, count, rank, device, dtype) for name, shape in linears.items()}
        self.numbers = torch.arange(1, count + 2, device=device)  # (the last is no slot's: it ends the sorted rows)

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    @property
    def bytes(self) -> int:
        return sum(linear.bytes for linear in self._linears.values())

    def __getitem__(self, name: str) -> LinearSlots:
        """Raises SpecError for a linear that the model's spec does not list."""
        try:
            return self._linears[name]
        except KeyError:
            raise SpecError(f"{name or 'a linear without a name'} is none of the linears that the spec lists") from None

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Puts an adapter in place of what was there. It has passed `check_adapter`, which is left to whoever reads it:
        it takes a hundred milliseconds for a large one, and this stands between everyone's tokens."""
        for name, linear in self._linears.items():
            linear.load(slot, adapter.factors.get(name, ()))
        if self.projectors is not None:
            self.projectors.load(slot, adapter.projector)


def slot_bytes(linears: Linears, rank: int, itemsize: int) -> int:
    """What one slot takes."""
    return sum(rank * (shape.inputs * len(shape.segments) + shape.outputs) * itemsize for shape in linears.values())


def check_adapter(
    adapter: AdapterWeights, linears: Linears, rank: int, projector: Mapping[str, tuple[int, ...]]
) -> None:
    """projector: shapes of its parameters; none where slots have no room for one. Raises SpecError for names, shapes
    and ranks that do not fit, and for numbers that are not finite: rows that are left out are multiplied by them as
    zeros, and 0 · infinity is no number."""
    for name, tensor in adapter.projector.items():
        if tuple(tensor.shape) != projector.get(name):
            raise SpecError(f"{name}: shape {list(tensor.shape)}, but slots have room for {projector.get(name)}")
        if not tensor.isfinite().all():
            raise SpecError(f"{name}: a number is not finite")
    for name, given in adapter.factors.items():
        shape = linears.get(name)
        if shape is None:
            raise SpecError(f"the adapter changes {name!r}, which is no linear of this model")
        if len(given) != len(shape.segments):
            raise SpecError(f"{name}: factors of {len(given)} segments; it has {len(shape.segments)}")
        for factors, outputs in zip(given, shape.segments, strict=True):
            if factors is not None:
                _check_factors(name, factors, shape.inputs, outputs, rank)


def _check_factors(name: str, factors: Factors, inputs: int, outputs: int, rank: int) -> None:
    a, b = tuple(factors.a.shape), tuple(factors.b.shape)
    if len(a) != 2 or len(b) != 2 or a[1] != inputs or b[1] != outputs or a[0] != b[0]:
        raise SpecError(f"{name}: factors {list(a)} and {list(b)} do not fit {inputs} inputs and {outputs} outputs")
    if not 0 < a[0] <= rank:
        raise SpecError(f"{name}: rank {a[0]}; the slots have rank {rank}")
    if not (factors.a.isfinite().all() and factors.b.isfinite().all()):
        raise SpecError(f"{name}: a factor is not finite")
