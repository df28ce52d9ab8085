"""What is gathered while the rows of a training file come in, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.encode_row import ImageOrigin
from opsin_server.jobs.faults import Faults, Remarks
from opsin_server.jobs.prepared import Facts, Kind, Origin, Remark, Report
from opsin_server.jobs.row_file import RowWriter, pack_rows


class Collected:
    """Writes rows, and knows their sizes."""

    def __init__(self, writer: RowWriter) -> None:
        self.faults, self.remarks = Faults(), Remarks()
        self.kind: Kind | None = None
        self.left_out = self.truncated = self.skipped = self.image_rows = self.longest = 0
        self.unread_from: int | None = None
        self._writer = writer
        self._line: list[int] = []
        self._tokens: list[int] = []
        self._labels: list[int] = []
        self._visual: list[int] = []
        self._starts = [0]
        self._images: list[int] = []
        self._numbers: dict[bytes, int] = {}
        self._origins: list[Origin] = []

    @property
    def rows(self) -> int:
        return len(self._line)

    def add(self, line: int, rows: Sequence[TrainingRow], origins: dict[bytes, ImageOrigin]) -> None:
        """One row, or the two of a preference."""
        self._writer.write(pack_rows(rows))
        self._line.append(line)
        self._tokens.append(sum(len(row.ids) for row in rows))
        self._labels.append(sum(int(row.labels.sum()) for row in rows))
        self._visual.append(sum(item.tokens for row in rows for item in row.items))
        self.longest = max(self.longest, *(len(row.ids) for row in rows))
        digests = dict.fromkeys(item.digest for row in rows for item in row.items)
        self.image_rows += bool(digests)
        self._images += [self._number(digest, origins[digest]) for digest in digests]
        self._starts.append(len(self._images))

    def _number(self, digest: bytes, origin: ImageOrigin) -> int:
        if digest not in self._numbers:
            self._numbers[digest] = len(self._origins)
            budget = origin.budget
            self._origins.append(Origin(digest.hex(), origin.file, budget.max_pixels, budget.max_tokens))
        return self._numbers[digest]

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(self._origins)

    def facts(self) -> Facts:
        lists = (self._line, self._tokens, self._labels, self._visual, self._starts, self._images, self._writer.offsets)
        return Facts(*(np.asarray(values, np.int64) for values in lists))

    def report(self) -> Report:
        remarks = (Remark(text, rows, self.remarks.lines[text]) for text, rows in self.remarks.counts.most_common())
        return Report(
            kind=self.kind or "supervised",
            rows=self.rows,
            tokens=sum(self._tokens),
            labels=sum(self._labels),
            visual_tokens=sum(self._visual),
            longest=self.longest,
            lengths=_lengths(self._tokens),
            images=len(self._origins),
            image_uses=len(self._images),
            image_rows=self.image_rows,
            left_out=self.left_out,
            truncated=self.truncated,
            skipped=self.skipped,
            fault_count=self.faults.count,
            faults=tuple(self.faults.first),
            remarks=tuple(remarks),
            unread_from=self.unread_from,
        )


def _lengths(tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """By powers of two."""
    counts = Counter(max(0, (count - 1).bit_length()) for count in tokens)
    return tuple((2**power, counts[power]) for power in range(min(counts), max(counts) + 1)) if counts else ()
