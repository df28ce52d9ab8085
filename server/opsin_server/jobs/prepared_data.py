"""Prepared files as a training run takes them."""

from __future__ import annotations

from opsin_server.ipc.training_messages import Split
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.ipc.training_run import DataShape
from opsin_server.jobs.prepared import Prepared


class PreparedData:
    """valid: of the same kind as `train`, where there is one."""

    def __init__(self, train: Prepared, valid: Prepared | None = None) -> None:
        self._of: dict[Split, Prepared | None] = {"train": train, "valid": valid}
        self._digests = {digest: found for found in (train, valid) if found is not None for digest in found.digests}
        self._shape: DataShape | None = None

    def count(self, split: Split) -> int:
        found = self._of[split]
        return 0 if found is None else len(found)

    def row(self, split: Split, number: int) -> TrainingRow:
        found = self._of[split]
        assert found is not None
        return found.row(number) if found.kind == "supervised" else found.pair(number // 2)[number % 2]

    def shape(self) -> DataShape:
        """Reads all rows through, once."""
        if self._shape is None:
            self._shape = self._measured()
        return self._shape

    def _measured(self) -> DataShape:
        tokens = patches = probe = seen = 0
        for split, found in self._of.items():
            for number in range(0 if found is None else len(found)):
                rows = self._rows(split, number)
                mine = sum(item.shape[0] for row in rows for item in row.items)
                tokens = max(tokens, sum(len(row.ids) for row in rows))
                patches = max(patches, mine)
                if split == "train" and mine and (not seen or mine < seen):
                    probe, seen = number, mine
        return DataShape(tokens, patches, probe)

    def _rows(self, split: Split, number: int) -> list[TrainingRow]:
        """One, or both of a pair."""
        found = self._of[split]
        assert found is not None
        return [self.row(split, number)] if found.kind == "supervised" else list(found.pair(number))

    def pixels(self, digest: bytes) -> Pixels:
        """Of either file's rows."""
        return self._digests[digest].pixels(digest)
