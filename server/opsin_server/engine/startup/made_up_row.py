"""A row that nobody sent: to count with what a row takes, and to compile with what training launches."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import numpy as np

from opsin_plugins.spec import VisualItem
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.engine.startup.inspect_checkpoint import InspectedCheckpoint
from opsin_server.engine.training.micro_step import VisualInput
from opsin_server.engine.training.pieces import Piece
from opsin_server.ipc.messages import describe
from opsin_server.ipc.training_rows import Pixels, TrainingRow

TEXT = 128  # tokens beside the picture

Result = TypeVar("Result")


def made_up_row(inspected: InspectedCheckpoint, item: VisualItem | None) -> tuple[TrainingRow, VisualInput]:
    """Of text with one such picture; its last token is learned."""
    spec, architecture = inspected.spec, inspected.architecture
    items, ids = () if item is None else (item,), [0] * TEXT
    if item is not None and spec.image_token is not None:
        ids[TEXT // 2] = spec.image_token
    expanded = architecture.expand(ids, items, spec, lambda text: [0])  # (any token will do)
    positions, _ = architecture.positions(expanded, items, spec)
    labels = np.zeros(len(expanded.ids), bool)
    labels[-1] = True
    visible = visible_images(expanded.visible)
    row = TrainingRow(expanded.ids, positions, labels, expanded.spans, describe(items), visible)
    return row, VisualInput([Pixels(item.pixels, item.arrange) for item in items])


def to_the_end(pieces: Generator[Piece, None, Result]) -> Result:
    """All pieces, without a pause."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            found: Result = end.value
            return found
