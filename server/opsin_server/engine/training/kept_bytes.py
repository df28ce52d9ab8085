"""What pieces keep for their backward pass, against a budget. What a stage keeps a row is known from having run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class KeptBytes:
    """budget: bytes. weights: tensors that are there in any case."""

    def __init__(self, budget: int, weights: Iterable[Tensor] = ()) -> None:
        self.budget, self.used, self.most = budget, 0, 0
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._per_row: dict[str, float] = {}

    @contextmanager
    def counting(self, kind: str, rows: int) -> Iterator[None]:
        """Counts what autograd keeps of a stage, the first time that its kind runs."""
        if kind in self._per_row:
            yield
            return
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._weights:
                found[storage._cdata] = storage.nbytes()
            return tensor.detach()  # (an output that its own graph holds would never be freed)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._per_row[kind] = sum(found.values()) / rows

    def per_row(self, kind: str) -> float:
        """What a kind that has run keeps."""
        return self._per_row.get(kind, 0.0)

    def take(self, kind: str, rows: int) -> bool:
        """Whether there is room for what a stage keeps, which is then taken."""
        count = int(self._per_row[kind] * rows)
        if self.used + count > self.budget:
            return False
        self.used += count
        self.most = max(self.most, self.used)
        return True

    def give_back(self, kind: str, rows: int) -> None:
        self.used -= int(self._per_row[kind] * rows)
