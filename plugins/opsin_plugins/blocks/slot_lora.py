"""Adapters in slots: which one each row of a batch has. Made once a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor, nn

from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.lora import SideBySide, add_lora, add_lora_beside, add_lora_slots
from opsin_kernels.slot_rows import SlotRows
from opsin_kernels.transfer import on_device
from opsin_plugins.blocks.adapter_slots import AdapterSlots, Factors
from opsin_plugins.blocks.lora import FrozenLinear, Lora

BASE = 0  # the slot of rows that have no adapter
# From so many rows a run on, runs are multiplied one by one. For kernels it takes more: they add all runs in two
# launches, where one by one it is two for each segment of each run. (Not measured: two tiles of a library's product.)
ROWS, KERNEL_ROWS = 16, 256


@dataclass(frozen=True)
class Run:
    """Rows that follow each other and have one adapter: a sequence's of a step, or a picture's."""

    slot: int
    rows: int


@dataclass(frozen=True)
class SlotLora(Lora):
    """slots: the weights of adapters 1 and following, on the device. runs: of all rows, in order. None: only the device
    knows, and `slot_of_row` says it (a captured step); rows cannot change their number then."""

    slots: AdapterSlots
    runs: tuple[Run, ...] | None
    slot_of_row: Tensor | None = None
    takes_codes: ClassVar[bool] = True

    def resized(self, counts: Sequence[int]) -> SlotLora:
        assert self.runs is not None
        return SlotLora(self.slots, tuple(Run(run.slot, n) for run, n in zip(self.runs, counts, strict=True)))

    def of_runs(self, chosen: Sequence[int]) -> SlotLora:
        assert self.runs is not None
        return SlotLora(self.slots, tuple(self.runs[i] for i in chosen))

    def projector_of(self, run: int) -> nn.Module | None:
        assert self.runs is not None
        slot, projectors = self.runs[run].slot, self.slots.projectors
        return None if projectors is None or slot == BASE else projectors[slot]

    def applied(self, linear: FrozenLinear, x: Tensor) -> Tensor:
        return self.add(linear.name, x, linear.stored.matmul(x, linear.bias))

    def add(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        """Into `out` itself unless something needs a gradient. Raises SpecError for a linear that the model's spec does
        not list."""
        held = self.slots[name]
        if self.runs is None:
            return add_lora_slots(out, x, held.stacked, self._rows)
        active = [(at, run) for at, run in self._active if held.changed_by(run.slot)]
        if not active:
            return out
        slots = {run.slot for _, run in active}
        if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
            return self._add_run_by_run(name, active, x, out)
        if uses_kernels(x):
            if sum(run.rows for _, run in active) < KERNEL_ROWS * len(active):
                return add_lora_slots(out, x, held.stacked, self._rows)
        elif len(active) > 1 and len(x) < ROWS * len(active):  # (base rows are multiplied with the others)
            beside = held.beside(slots)
            add_lora_beside(out, x, beside, self._foreign(beside))
            return out
        return self._add_run_by_run(name, active, x, out)

    def _add_run_by_run(self, name: str, active: Sequence[tuple[int, Run]], x: Tensor, out: Tensor) -> Tensor:
        for at, run in active:
            rows = slice(at, at + run.rows)
            mine, part = x[rows], out[rows]
            for columns, factors in self._factors(name, run.slot):
                before = part[:, columns]
                after = add_lora(before, mine, factors.a, factors.b)
                if after is not before:  # (a gradient is needed: nothing is changed in place)
                    part = torch.slice_scatter(part, after, 1, columns.start, columns.stop)
                    out = torch.slice_scatter(out, part, 0, rows.start, rows.stop)
        return out

    def _factors(self, name: str, slot: int) -> Iterator[tuple[slice, Factors]]:
        """Of each segment that the adapter changes, and where its outputs stand."""
        held = self.slots[name]
        for columns, factors in zip(held.columns, held.factors(slot), strict=False):
            if factors is not None:
                yield columns, factors

    @cached_property
    def _active(self) -> list[tuple[int, Run]]:
        """The first row of each run that has an adapter; neighbours with the same are one run."""
        assert self.runs is not None
        found, at = [], 0
        for slot, group in groupby(self.runs, key=lambda run: run.slot):
            rows = sum(run.rows for run in group)
            if slot != BASE and rows:
                found.append((at, Run(slot, rows)))
            at += rows
        return found

    @cached_property
    def _rows(self) -> SlotRows:
        """The slot of each row, on the device. Built once a step, not once a linear."""
        rows = self.slot_of_row
        if rows is None:
            assert self.runs is not None
            numbers = [run.slot for run in self.runs for _ in range(run.rows)]
            rows = on_device(numbers, torch.int64, self.slots.device)
        return SlotRows(rows, self.slots.numbers)

    def _foreign(self, beside: SideBySide) -> Tensor:
        """bool [T, C]. Linears whose adapters have the same ranks share one."""
        found = self._foreign_of.get(beside.key)
        if found is None:
            found = self._foreign_of[beside.key] = self._rows.slots[:, None] != beside.owners
        return found

    @cached_property
    def _foreign_of(self) -> dict[bytes, Tensor]:
        return {}
