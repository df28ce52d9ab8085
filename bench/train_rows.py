"""Rows to train on, of random pictures and words: what both sides of bench/train.py are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.spec import Expanded, ImageBudget, VisualItem
from opsin_server.ipc.messages import describe
from opsin_server.ipc.training_rows import Pixels, TrainingRow

START, END = "vision_start_token_id", "vision_end_token_id"


@dataclass(frozen=True)
class MadeRow:
    expanded: Expanded
    items: tuple[VisualItem, ...]
    row: TrainingRow

    @property
    def pixels(self) -> dict[bytes, Pixels]:
        return {item.digest: Pixels(item.pixels, item.arrange) for item in self.items}


def made_rows(model: OpenModel, count: int, seed: int, side: int) -> list[MadeRow]:
    """A picture of `side` pixels, a question and an answer: some 200 to 600 tokens, 5 to 30 of which are learned."""
    return [_row(model, np.random.default_rng((seed, number)), side) for number in range(count)]


def _row(model: OpenModel, chance: np.random.Generator, side: int) -> MadeRow:
    spec, architecture = model.spec, model.architecture
    assert spec.image_token is not None
    height, width = (int(side * factor) for factor in chance.uniform(0.7, 1.4, 2))
    picture = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
    (item,) = architecture.preprocess([picture], spec, ImageBudget())
    item = VisualItem(item.pixels, item.grid, item.tokens, chance.bytes(32), item.tiles, item.arrange, item.hidden)
    answer = int(chance.integers(5, 31))
    before, behind = chance.integers(300, 1000, 10).tolist(), chance.integers(300, 1000, 40 + answer).tolist()
    config = model.files.config
    ids = [*before, config[START], spec.image_token, config[END], *behind]
    expanded = architecture.expand(ids, (item,), spec, lambda text: [])
    positions, _ = architecture.positions(expanded, (item,), spec)
    labels = np.zeros(len(expanded.ids), bool)
    labels[-answer:] = True
    row = TrainingRow(expanded.ids, positions, labels, expanded.spans, describe((item,)))
    return MadeRow(expanded, (item,), row)
