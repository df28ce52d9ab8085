"""Prepared files as a training run takes them."""

from __future__ import annotations

from opsin_server.ipc.training_messages import Split
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.jobs.prepared import Prepared


class PreparedData:
    """valid: of the same kind as `train`, where there is one."""

    def __init__(self, train: Prepared, valid: Prepared | None = None) -> None:
        self._of: dict[Split, Prepared | None] = {"train": train, "valid": valid}

    def count(self, split: Split) -> int:
        found = self._of[split]
        return 0 if found is None else len(found)

    def row(self, split: Split, number: int) -> TrainingRow:
        found = self._of[split]
        assert found is not None
        return found.row(number) if found.kind == "supervised" else found.pair(number // 2)[number % 2]

    def pixels(self, digest: bytes) -> Pixels:
        """Of either file's rows."""
        for found in self._of.values():
            if found is not None and digest in found.digests:
                return found.pixels(digest)
        raise KeyError(digest.hex())
