"""A preprocessed image as it crosses the door."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True):
    """An image whose pixels follow as a frame: a VisualItem without its arrays. digest: SHA-256 of what it is and how
    it was prepared."""

    digest: bytes
    grid: tuple[int, int, int]
    tokens: int
    shape: tuple[int, int]  # [N, C·p·p]
    tiles: tuple[int, int] = (1, 1)
    hidden: int = 0
    arranged: bool = False
