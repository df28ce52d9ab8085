"""Where a trainer's rows come from: asked for ahead, and there some time later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from opsin_server.ipc.item import Item
from opsin_server.ipc.training_messages import Split
from opsin_server.ipc.training_rows import Pixels, TrainingRow

NeedsPixels = Callable[[bytes], bool]
"""Whether the pixels of an image, by its digest, are still wanted."""


class RowSource(Protocol):
    def count(self, split: Split) -> int:
        """Rows, or pairs of rows where one is preferred."""

    def keep(self, budget: int) -> None:
        """Bytes of pixels that may be kept in memory."""

    def want(self, split: Split, numbers: Sequence[int], needs: NeedsPixels) -> None:
        """These rows will be taken, with the pixels of those of their images that are needed."""

    def take(self, split: Split, numbers: Sequence[int]) -> list[TrainingRow] | None:
        """Rows that are wanted; None: they are not there yet. Each is handed out once."""

    def pixels(self, item: Item) -> Pixels:
        """Of an image of rows that have been taken."""

    def forget(self, item: Item) -> None:
        """Its pixels are not needed any more."""
