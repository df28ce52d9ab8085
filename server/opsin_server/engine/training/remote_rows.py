"""Rows that the API process has: asked for by number, and pixels by their digests when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from opsin_server.engine.training.row_source import NeedsPixels
from opsin_server.engine.training.tensor_store import TensorStore
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_messages import FromTraining, PixelsWanted, RowsWanted, Split
from opsin_server.ipc.training_rows import Pixels, TrainingRow


class RemoteRows:
    """train, valid: how many rows there are. pixels: where they are kept that have come."""

    def __init__(
        self,
        job_id: str,
        send: Callable[[FromTraining], None],
        train: int,
        valid: int,
        pixels: TensorStore,
    ) -> None:
        self._job_id, self._send, self._pixels = job_id, send, pixels
        self._counts: dict[Split, int] = {"train": train, "valid": valid}
        self._rows: dict[tuple[Split, int], TrainingRow] = {}
        self._asked: dict[tuple[Split, int], NeedsPixels] = {}
        self._pixels_asked: set[bytes] = set()
        self._arrange: dict[bytes, torch.Tensor] = {}

    def count(self, split: Split) -> int:
        return self._counts[split]

    def keep(self, budget: int) -> None:
        self._pixels.budget = budget

    def want(self, split: Split, numbers: Sequence[int], needs: NeedsPixels) -> None:
        new = [number for number in numbers if (split, number) not in self._rows and (split, number) not in self._asked]
        self._asked |= {(split, number): needs for number in new}
        if new:
            self._send(RowsWanted(self._job_id, split, tuple(new)))

    def take(self, split: Split, numbers: Sequence[int]) -> list[TrainingRow] | None:
        keys = [(split, number) for number in numbers]
        if not all(key in self._rows for key in keys) or self._missing(keys):
            return None
        return [self._rows.pop(key) for key in keys]

    def pixels(self, item: Item) -> Pixels:
        arrange = self._arrange.get(item.digest)
        return Pixels(self._pixels.get(item.digest).numpy(), None if arrange is None else arrange.numpy())

    def forget(self, item: Item) -> None:
        self._pixels.drop(item.digest)
        self._arrange.pop(item.digest, None)

    def give_rows(self, split: Split, numbers: Sequence[int], rows: Sequence[TrainingRow]) -> None:
        wanted: list[Item] = []
        for number, row in zip(numbers, rows, strict=True):
            needs = self._asked.pop((split, number), None)
            if needs is None:  # nobody asked
                continue
            self._rows[split, number] = row
            wanted += [item for item in row.items if needs(item.digest) and self._is_new(item.digest)]
        if new := {item.digest: item for item in wanted}:
            self._pixels_asked.update(new)
            self._send(PixelsWanted(self._job_id, tuple(new.values())))

    def give_pixels(self, item: Item, pixels: Pixels) -> None:
        if item.digest not in self._pixels_asked:
            return
        self._pixels_asked.remove(item.digest)
        self._pixels.put(item.digest, torch.from_numpy(pixels.patches.copy()))
        if pixels.arrange is not None:
            self._arrange[item.digest] = torch.from_numpy(pixels.arrange.copy())

    def close(self) -> None:
        self._pixels.close()

    def _is_new(self, digest: bytes) -> bool:
        return digest not in self._pixels and digest not in self._pixels_asked

    def _missing(self, keys: Sequence[tuple[Split, int]]) -> bool:
        """Whether pixels of these rows are still on their way."""
        return any(item.digest in self._pixels_asked for key in keys for item in self._rows[key].items)
