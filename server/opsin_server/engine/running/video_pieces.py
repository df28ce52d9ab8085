"""A long video cut in time, so that encoding it takes no more memory than encoding pictures does. Its frames attend
apart: what the tower makes of them is the same."""

from __future__ import annotations

import math

import msgspec

from opsin_server.ipc.item import Item


def pieces_of(item: Item, patches: int | None) -> list[Item]:
    """Of so many patches at most, unless one layer in time has more; None, and pictures: the item whole."""
    frames, rows, columns = item.grid
    most = frames if patches is None else max(1, patches // (rows * columns))
    if item.patch_rows == 1 or frames <= most:
        return [item]
    counts = [min(most, frames - first) for first in range(0, frames, most)]
    return [
        msgspec.structs.replace(
            item,
            grid=(count, rows, columns),
            shape=(math.prod((count, rows, columns)) * item.patch_rows, item.shape[1]),
            tokens=item.tokens * count // frames,
        )
        for count in counts
    ]
