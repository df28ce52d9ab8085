"""Where patches lie: their order, their rows and columns, their windows, and tables stretched to a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_plugins.spec import Grid


def merged_places(grid: Grid, merge: int) -> Tensor:
    """I64 [t·h·w, 2]: row and column of each patch, merge × merge neighbours together."""
    frames, rows, columns = grid
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    blocked = place.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)
    return blocked.reshape(-1, 2).repeat(frames, 1)


Stretch = Literal["bicubic", "corners", "antialiased"]


def resized_table(table: Tensor, size: tuple[int, int], how: Stretch = "bicubic") -> Tensor:
    """A square table [s·s, width] stretched to a grid of `size`: [rows·columns, width]. corners: bilinear from the
    first entry to the last; antialiased: bilinear, over all entries that one of the grid covers."""
    side = math.isqrt(len(table))
    if (side, side) == size:
        return table
    square = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    mode = "bicubic" if how == "bicubic" else "bilinear"
    found = F.interpolate(square, size, mode=mode, align_corners=how == "corners", antialias=how == "antialiased")
    return found.flatten(2)[0].T.to(table.dtype)


def buckets(count: int, side: int) -> Tensor:
    """I64 [count]: which of `side` equal parts of the unit interval each of `count` equal steps begins in. In float32,
    as the published code does it: a step that falls on a border may land on either side."""
    borders = torch.arange(1 / side, 1.0, 1 / side)
    steps = (torch.arange(count, dtype=torch.float32) * (torch.tensor(1.0) / count)).clamp(max=1.0 - 1e-6)
    return torch.bucketize(steps, borders, right=True)


def windows(grids: Sequence[Grid], merge: int, window: int) -> tuple[Tensor, list[int]]:
    """The order I64 [N] that brings patches of one window together, and the windows' lengths.

    window: its side in patches. Patches come with merge × merge neighbours together and stay so. Windows of one size
    follow each other, so that attention over them is few batched calls (4 for a square picture instead of 100).
    """
    side, unit, order, lengths, start = window // merge, merge**2, [], [], 0
    for frames, rows, columns in grids:
        high, wide = rows // merge, columns // merge
        across = -(-wide // side)
        owner = (np.arange(high)[:, None] // side * across + np.arange(wide) // side).ravel()
        sizes = np.bincount(owner)
        rank = np.argsort(-sizes, kind="stable")
        units = np.argsort(np.argsort(rank)[owner], kind="stable")
        for _ in range(frames):
            order.append((start + units[:, None] * unit + np.arange(unit)).ravel())
            lengths += (sizes[rank] * unit).tolist()
            start += rows * columns
    return torch.from_numpy(np.concatenate(order)), lengths
