"""Rows and pixels of a training run as the raw frames behind their messages, and back. What does not fit its message is
refused: it would fail in the middle of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opsin_plugins.spec import I32
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import Frame
from opsin_server.ipc.submit_frames import INT32, UINT8, WrongFrames
from opsin_server.ipc.training_messages import PixelsGiven, RowForm, RowsGiven
from opsin_server.ipc.training_rows import Pixels, TrainingRow


def form_of(row: TrainingRow) -> RowForm:
    return RowForm(len(row.positions), row.spans, row.items, row.visible)


def frames_of_rows(rows: Sequence[TrainingRow]) -> list[Frame]:
    return [
        np.ascontiguousarray(array).data
        for row in rows
        for array in (row.ids.astype(np.int32), row.positions.astype(np.int32), row.labels.astype(np.uint8))
    ]


def rows_from(message: RowsGiven, frames: Sequence[bytes]) -> list[TrainingRow]:
    """Raises WrongFrames."""
    if len(frames) != 3 * len(message.rows) or len(message.rows) != len(message.numbers):
        raise WrongFrames(f"{len(frames)} frames and {len(message.numbers)} numbers for {len(message.rows)} rows")
    return [_row(form, *frames[3 * i : 3 * i + 3]) for i, form in enumerate(message.rows)]


def _row(form: RowForm, ids: bytes, positions: bytes, labels: bytes) -> TrainingRow:
    count = len(ids) // INT32.itemsize
    if not count or len(labels) != count or len(positions) != count * form.axes * INT32.itemsize:
        raise WrongFrames(f"ids, positions and labels have {len(ids)}, {len(positions)} and {len(labels)} bytes")
    learned = np.frombuffer(labels, UINT8).astype(bool)
    if learned[0] or not learned.any():
        raise WrongFrames("a row's labels are none, or the first of its tokens")
    return TrainingRow(
        np.frombuffer(ids, INT32),
        np.frombuffer(positions, INT32).reshape(form.axes, count),
        learned,
        form.spans,
        form.items,
        form.visible,
    )


def frames_of_pixels(pixels: Sequence[Pixels]) -> list[Frame]:
    arrays: list[np.ndarray[Any, Any]] = [one.patches for one in pixels]
    arrays += [one.arrange.astype(np.int32) for one in pixels if one.arrange is not None]
    return [np.ascontiguousarray(array).data for array in arrays]


def pixels_from(message: PixelsGiven, frames: Sequence[bytes]) -> list[tuple[Item, Pixels]]:
    """Raises WrongFrames."""
    count, arranged = len(message.items), sum(item.arranged for item in message.items)
    if len(frames) != count + arranged:
        raise WrongFrames(f"{len(frames)} frames for {count} items, {arranged} of them arranged")
    orders = iter(frames[count:])
    return [(item, _pixels(item, frame, orders)) for item, frame in zip(message.items, frames, strict=False)]


def _pixels(item: Item, frame: bytes, orders: Any) -> Pixels:
    if len(frame) != item.shape[0] * item.shape[1]:
        raise WrongFrames(f"pixels of {len(frame)} bytes, and {list(item.shape)} by their item")
    arrange: I32 | None = None
    if item.arranged:
        arrange = np.frombuffer(next(orders), INT32)
        if len(arrange) != item.tokens:
            raise WrongFrames(f"places of {len(arrange)} tokens, and {item.tokens} by their item")
    return Pixels(np.frombuffer(frame, UINT8).reshape(item.shape), arrange)
