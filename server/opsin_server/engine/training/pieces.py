"""A forward pass in pieces and the backward pass over them, so that whoever runs it can stop between any two.

Each piece maps named, detached tensors to others, so that its graph is its own. The backward pass walks the pieces from
the end; a tensor's gradient is complete when all that took it have run (visual tokens feed many layers). A piece's
graph is kept for its backward pass as long as there is room, and made again from its inputs beyond that: 1.3 to 1.4
times the work for a twelfth of the memory.

No grad mode spans a `yield`: a generator that is dropped half-run would leave gradients off in the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_plugins.blocks.stages import Stage
from opsin_server.engine.training.kept_bytes import KeptBytes


@dataclass(frozen=True)
class Piece:
    """Work that runs as one: it begins when whoever received this asks for the next. kind: of pieces that take equally
    long for each of their `rows`."""

    kind: str
    rows: int


Pieces = Iterator[Piece]


@dataclass(eq=False)
class Value:
    """A tensor between pieces. needs_gradient: whether something that is trained has had a part in it."""

    tensor: Tensor
    needs_gradient: bool = False
    gradient: Tensor | None = None

    def leaf(self) -> Tensor:
        return self.tensor.detach().requires_grad_(self.needs_gradient)

    def collect(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.gradient = gradient if self.gradient is None else self.gradient + gradient


@dataclass(eq=False)
class _Done:
    """A stage that has run. kept: its inputs and outputs with their graph; None: it is made again."""

    stage: Stage
    part: str
    rows: int
    takes: list[Value]
    gives: list[Value]
    kept: tuple[list[Tensor], tuple[Tensor, ...]] | None


class Tape:
    """The pieces of one micro-batch, and the latest tensor of each name. trains: whether a backward pass is to come."""

    def __init__(self, kept_bytes: KeptBytes, trains: bool = True) -> None:
        self.values: dict[str, Value] = {}
        self.kinds: list[str] = []  # of the stages that ran
        self.held: dict[str, int] = {}  # bytes of what they gave, by the part of the model
        self._kept_bytes, self._trains = kept_bytes, trains
        self._done: list[_Done] = []

    def give(self, name: str, tensor: Tensor) -> None:
        """Something that no stage makes."""
        self.values[name] = Value(tensor)

    def forward(self, stages: Sequence[Stage], part: str, rows: int) -> Pieces:
        """part: of the model ("vision", "language"), whose stages have so many rows."""
        for stage in stages:
            yield Piece(f"{_kind(part, stage)}.forward", rows)
            self._run(stage, part, rows)

    def backward(self) -> Pieces:
        """From the gradients that values hold to those of the leaves."""
        while self._done:
            last = self._done[-1]
            again = "" if last.kept is not None else ".again"
            yield Piece(f"{_kind(last.part, last.stage)}.backward{again}", last.rows)
            self._back(self._done.pop())

    def drop(self) -> None:
        """What was kept is given back; the micro-batch is not gone on with."""
        while self._done:
            self._free(self._done.pop())

    def _run(self, stage: Stage, part: str, rows: int) -> None:
        takes = [self.values[name] for name in stage.takes]
        if not self._trains:
            with torch.no_grad():
                made = stage.run(*(value.tensor for value in takes))
            self.values.update({name: Value(tensor) for name, tensor in zip(stage.gives, made, strict=True)})
            return
        kind = _kind(part, stage)
        leaves = [value.leaf() for value in takes]
        with torch.enable_grad(), self._kept_bytes.counting(kind, rows):
            outputs = stage.run(*leaves)
        gives = [Value(out.detach(), out.requires_grad) for out in outputs]
        self.kinds.append(kind)
        held = {out.untyped_storage()._cdata: out.nbytes for out in outputs}  # (one may have two names)
        self.held[part] = self.held.get(part, 0) + sum(held.values())
        if any(value.needs_gradient for value in gives):
            keeps = self._kept_bytes.take(kind, rows)
            self._done.append(_Done(stage, part, rows, takes, gives, (leaves, outputs) if keeps else None))
        self.values.update(zip(stage.gives, gives, strict=True))

    def _back(self, done: _Done) -> None:
        leaves, outputs = done.kept if done.kept is not None else _again(done)
        pairs = [
            (out, value.gradient)
            for out, value in zip(outputs, done.gives, strict=True)
            if out.requires_grad and value.gradient is not None
        ]
        if pairs:
            torch.autograd.backward([out for out, _ in pairs], [gradient for _, gradient in pairs])
        for value, leaf in zip(done.takes, leaves, strict=True):
            if value.needs_gradient:
                value.collect(leaf.grad)
        self._free(done)

    def _free(self, done: _Done) -> None:
        if done.kept is not None:
            self._kept_bytes.give_back(_kind(done.part, done.stage), done.rows)


def _kind(part: str, stage: Stage) -> str:
    """All layers of a part are one kind."""
    return f"{part}.{stage.name.partition('.')[0]}"


def _again(done: _Done) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    leaves = [value.leaf() for value in done.takes]
    with torch.enable_grad():
        return leaves, done.stage.run(*leaves)
