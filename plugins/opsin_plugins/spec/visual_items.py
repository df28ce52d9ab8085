"""What a prompt is: its pictures as patches, and where each lies among the tokens. All numpy.

Shapes: T tokens, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opsin_plugins.spec.base_types import I32, U8, Grid
from opsin_plugins.spec.videos import VideoPlan


@dataclass(frozen=True)
class ImageBudget:
    """What a request and the server's operator allow one image, for families that can resize.

    max_pixels, max_tokens: at most so many after resizing, as far as the family's smallest form allows; None: no limit
    but the model's own.
    """

    max_pixels: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class VisualItem:
    """One preprocessed image or video.

    pixels: U8 [N, C·p·p], one frame's patches in the tower's order; the stem normalises on the device. Of a video, the
    frames that a patch spans stand behind each other.
    grid: (frames or tiles, rows, columns) in patches. tokens: how many visual tokens it becomes. digest: set by the
    host.
    tiles: how the tiles lie, (rows, columns); the grid may have one more (a view of the whole picture).
    arrange: I32 [tokens], which projected feature each visual token is, -1 for the newline; None: as they come.
    hidden: trailing visual tokens that only prompt tokens before the first image may attend to.
    video: what was taken of a video; None: it is an image.
    """

    pixels: U8
    grid: Grid
    tokens: int
    digest: bytes = b""
    tiles: tuple[int, int] = (1, 1)
    arrange: I32 | None = None
    hidden: int = 0
    video: VideoPlan | None = None

    @property
    def patch_rows(self) -> int:
        """Rows of pixels for each patch: the frames that it spans, or 1 of an image, which fills all of them."""
        return len(self.pixels) // (self.grid[0] * self.grid[1] * self.grid[2])


@dataclass(frozen=True)
class Span:
    """Where an image sits in the expanded prompt.

    All `length` ids from `start` belong to `item`; visual_mask[k] says whether id k is overwritten by a visual token
    (None: every one). bidirectional: the span attends to itself both ways, so no chunk may split it.
    """

    start: int
    length: int
    item: int
    visual_mask: tuple[bool, ...] | None = None
    bidirectional: bool = False

    @property
    def visual_tokens(self) -> int:
        """Ids that are overwritten; what else is in it (marks, the seconds of a video) is text."""
        return self.length if self.visual_mask is None else sum(self.visual_mask)

    def is_visual(self, place: int) -> bool:
        """Of an id of the prompt, which is in the span."""
        return self.visual_mask is None or self.visual_mask[place - self.start]


@dataclass(frozen=True)
class VisibleImages:
    """From prompt token `start` on, tokens attend to the items lo to hi - 1 (see `Expanded.visible`)."""

    start: int
    lo: int
    hi: int


def visible_images(visible: I32 | None) -> tuple[VisibleImages, ...]:
    """`Expanded.visible` I32 [T, 2] in runs of equal rows."""
    if visible is None:
        return ()
    starts = np.flatnonzero(np.any(visible[1:] != visible[:-1], 1)) + 1
    return tuple(VisibleImages(int(at), *visible[at].tolist()) for at in (0, *starts))


@dataclass(frozen=True)
class Expanded:
    """ids I32 [T] with every placeholder at its full length; spans in the order of the prompt.

    visible: I32 [T, 2] for cross-attention only: row t attends to the visual items lo to hi - 1 (none where they are
    equal; lo = -1: before any image, see CrossSpec). hi never falls, and the last row's range is that of the answer.
    """

    ids: I32
    spans: tuple[Span, ...]
    visible: I32 | None = None
