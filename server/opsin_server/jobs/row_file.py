"""Prepared rows on disk: records one behind the other, found by their offsets, so that memory stays flat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from opsin_plugins.spec import Span, VisibleImages
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_rows import TrainingRow


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """ids, positions: little-endian I32. labels: eight a byte."""

    ids: bytes
    positions: bytes
    axes: int
    labels: bytes
    spans: tuple[Span, ...]
    items: tuple[Item, ...]
    visible: tuple[VisibleImages, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[_Stored, ...]).decode
_INT = np.dtype("<i4")


def pack_rows(rows: Sequence[TrainingRow]) -> bytes:
    """One row, or the two of a preference."""
    return _encode([_stored(row) for row in rows])


def unpack_rows(data: bytes) -> tuple[TrainingRow, ...]:
    return tuple(_row(stored) for stored in _decode(data))


def _stored(row: TrainingRow) -> _Stored:
    return _Stored(
        row.ids.astype(_INT).tobytes(),
        row.positions.astype(_INT).tobytes(),
        len(row.positions),
        np.packbits(row.labels).tobytes(),
        row.spans,
        row.items,
        row.visible,
    )


def _row(stored: _Stored) -> TrainingRow:
    ids = np.frombuffer(stored.ids, _INT).astype(np.int32)
    positions = np.frombuffer(stored.positions, _INT).astype(np.int32).reshape(stored.axes, -1)
    labels = np.unpackbits(np.frombuffer(stored.labels, np.uint8), count=len(ids)).astype(bool)
    return TrainingRow(ids, positions, labels, stored.spans, stored.items, stored.visible)


class RowWriter:
    """Writes records, and keeps where each begins."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offsets = [0]

    def write(self, record: bytes) -> None:
        self._file.write(record)
        self.offsets.append(self.offsets[-1] + len(record))


class RowReader:
    """Threads may share one."""

    def __init__(self, path: Path, offsets: np.ndarray) -> None:
        self._file = path.open("rb")
        self._offsets = offsets

    def read(self, index: int) -> tuple[TrainingRow, ...]:
        start, end = (int(offset) for offset in self._offsets[index : index + 2])
        return unpack_rows(os.pread(self._file.fileno(), end - start, start))

    def close(self) -> None:
        self._file.close()
