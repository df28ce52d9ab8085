"""Rows and pictures through a model a stage at a time, so that something can be done at each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.stages import Stage, run_stages
from opsin_server.engine.training.micro_batch import MicroBatch
from opsin_server.ipc.training_rows import Pixels

PixelsOf = Callable[[bytes], Pixels]


class Walk:
    """One packed batch, or one picture, on its way. Between two stages it holds what the next ones take, no more."""

    def __init__(self, stages: Sequence[Stage], values: Mapping[str, Tensor]) -> None:
        self._stages, self.values = stages, dict(values)

    def __len__(self) -> int:
        return len(self._stages)

    def run(self, number: int) -> dict[str, Tensor]:
        """One stage, of what it is given now. Nothing is moved on."""
        return run_stages([self._stages[number]], self.values)

    def step(self, number: int) -> None:
        """Goes on behind a stage."""
        made = self.run(number)
        kept = {name for stage in self._stages[number + 1 :] for name in stage.takes} | set(self._stages[-1].gives)
        self.values = {name: value for name, value in made.items() if name in kept}

    def end(self, number: int) -> Tensor:
        """What comes out of the last stage, from this one on."""
        return run_stages(self._stages[number:], self.values)[self._stages[-1].gives[0]]


def picture_walks(model: Model, batches: Iterable[MicroBatch], pixels_of: PixelsOf) -> dict[bytes, Walk]:
    """Each picture alone, and once, from its pixels to its visual tokens, by its digest."""
    items = {item.digest: item for batch in batches for item in batch.items}
    walks = {}
    for digest, item in items.items():
        pixels = pixels_of(digest)
        order = None if pixels.arrange is None else torch.from_numpy(pixels.arrange).long()
        walks[digest] = Walk(model.encode_stages([item], [order]), {"pixels": torch.from_numpy(pixels.patches)})
    return walks


def row_walks(model: Model, batches: Iterable[MicroBatch], tokens: Mapping[bytes, Tensor]) -> list[Walk]:
    """From ids to the last layer's states of all rows, whatever is asked for. tokens: of pictures, by digest."""
    walks = []
    for batch in batches:
        values: dict[str, Tensor] = {}
        if (takes := batch.takes) is not None:
            given = {"tokens": torch.cat([tokens[item.digest] for item in batch.items])}
            values = dict(zip(takes.gives, takes.run(*given.values()), strict=True))
        walks.append(Walk(model.stages(batch.ids, replace(batch.inputs, wanted=None), batch.visual), values))
    return walks


def run_heard(walks: Iterable[Walk], number: int, hooks: Sequence[RemovableHandle]) -> None:
    """One stage of all, nothing moved on, and the hooks that hear it are gone."""
    try:
        for walk in walks:
            walk.run(number)
    finally:
        for hook in hooks:
            hook.remove()
