"""A preprocessed image or video as it crosses the door."""

from __future__ import annotations

import math

import msgspec


class Item(msgspec.Struct, frozen=True):
    """An image or a video whose pixels follow as a frame: a VisualItem without its arrays. digest: SHA-256 of what
    it is and how it was prepared."""

    digest: bytes
    grid: tuple[int, int, int]
    tokens: int
    shape: tuple[int, int]  # [N, C·p·p]
    tiles: tuple[int, int] = (1, 1)
    hidden: int = 0
    arranged: bool = False

    @property
    def patches(self) -> int:
        return math.prod(self.grid)

    @property
    def patch_rows(self) -> int:
        """Rows of pixels for each patch, as of VisualItem."""
        return self.shape[0] // self.patches

    @property
    def layers(self) -> int:
        """Parts that the tower may take one after another: layers in time of a video. They attend apart, so that what
        it makes of them is the same. A picture is one."""
        return self.grid[0] if self.patch_rows > 1 else 1

    def cut(self, layers: int) -> Item:
        """So many of its layers, as an item."""
        if layers == self.layers:
            return self
        part = math.prod(self.grid[1:]) * self.patch_rows
        return msgspec.structs.replace(
            self,
            grid=(layers, *self.grid[1:]),
            shape=(layers * part, self.shape[1]),
            tokens=self.tokens * layers // self.layers,
        )
