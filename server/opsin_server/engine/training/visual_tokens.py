"""Visual tokens of a tower and projector that are not trained: computed once a job, whatever the epochs, and taken over
from any other job that has them.

Each picture is computed alone, so that its tokens do not depend on the micro-batch in which it came first.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from opsin_plugins.blocks.model import Model
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.micro_step import encode
from opsin_server.engine.training.pieces import Piece, Tape
from opsin_server.engine.training.row_source import RowSource
from opsin_server.engine.training.tensor_store import TensorStore
from opsin_server.ipc.item import Item


class VisualTokens:
    """store: this job's own. stores: those of all jobs over this base that go on."""

    def __init__(self, model: Model, store: TensorStore, device: torch.device, stores: Sequence[TensorStore]) -> None:
        self._model, self._store, self._device, self._stores = model, store, device, stores

    def needs(self, digest: bytes) -> bool:
        """Whether the pixels of a picture are wanted."""
        return not self._has(digest)

    def of(self, items: Sequence[Item], source: RowSource) -> Generator[Piece, None, Tensor]:
        """The visual tokens of all items behind each other [M, H · (1 + levels)]."""
        for item in items:
            if not self._has(item.digest):
                tape = Tape(KeptBytes(0), trains=False)
                yield from encode(self._model, [item], [source.pixels(item)], None, tape)
                self._store.put(item.digest, tape.values["tokens"].tensor)
            source.forget(item)
        return torch.cat([self._store.get(item.digest).to(self._device) for item in items])

    def _has(self, digest: bytes) -> bool:
        """Another job's are copied, since that job may end first."""
        if digest in self._store:
            return True
        other = next((store for store in self._stores if digest in store), None)
        if other is not None:
            self._store.put(digest, other.get(digest))
        return other is not None
