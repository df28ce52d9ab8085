"""Which rows each step has: an order of its own every epoch, drawn from the seed, so that a place in it is a number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class RowOrder:
    """count: rows. batch: of a step; an epoch's last may be smaller."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < 1:
            raise ValueError("there is no row to train on")
        self.count, self.batch, self._seed = count, min(batch, count), seed
        self._permutation = lru_cache(2)(self._permuted)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.count // self.batch)

    def rows_of(self, step: int) -> list[int]:
        """step: from 0 on, over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        found: list[int] = self._permutation(epoch)[number * self.batch : (number + 1) * self.batch]
        return found

    def _permuted(self, epoch: int) -> list[int]:
        found: list[int] = np.random.default_rng((self._seed, epoch)).permutation(self.count).tolist()
        return found


def packed(rows: Sequence[int], tokens: Sequence[int], most: int) -> list[list[int]]:
    """Rows in micro-batches of at most so many tokens, in their order; one that is longer stands alone. tokens: of each
    of these rows."""
    found: list[list[int]] = []
    room = 0
    for row, count in zip(rows, tokens, strict=True):
        if count > room:
            found.append([])
            room = max(most, count)
        found[-1].append(row)
        room -= count
    return found
