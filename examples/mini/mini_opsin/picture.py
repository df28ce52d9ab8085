"""What a drawn picture is: its pixels, the things in it, and the map that says which thing owns which pixel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Box = tuple[float, float, float, float]


@dataclass
class Thing:
    """One object or character. box is (left, top, right, bottom) in pixels of the final picture."""

    kind: str  # "shape" | "emoji" | "char"
    name: str
    colour: str | None
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.name}" if self.colour else self.name


@dataclass
class Picture:
    kind: str  # "scene" | "text" | "clutter"
    pixels: U8  # [H, W, 3]
    owner: U8  # [H, W]; 0 = background, i = things[i - 1]
    things: list[Thing] = field(default_factory=list)
    background: str | None = None  # a colour's name where the ground is one plain named colour
    ink: str | None = None  # the text's colour
    text: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.pixels.shape[1], self.pixels.shape[0]


def patch_owner(owner: U8, n: int, patch: int) -> I64:
    """[H, W] pixel owners -> [H/patch, W/patch]: the thing that covers most of a patch, 0 where < 1/5 is covered."""
    h, w = owner.shape
    blocks = owner.reshape(h // patch, patch, w // patch, patch)
    if not n:
        return np.zeros((h // patch, w // patch), np.int64)
    cover = np.stack([(blocks == i).sum((1, 3)) for i in range(1, n + 1)])
    return np.where(cover.sum(0) * 5 >= patch * patch, cover.argmax(0) + 1, 0).astype(np.int64)
