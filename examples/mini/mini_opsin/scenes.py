"""Scenes: zero to five shapes or emoji on a plain ground.

A picture is drawn at its final size (multiples of 16 px: what the preprocessor makes of a user's image) or at two to
three times that size and shrunk, so that both jagged and smooth edges occur.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mini_opsin.canvas import Size, finish, ground_image, pick_ground, pick_ink
from mini_opsin.fonts import Fonts, emoji_bitmap
from mini_opsin.picture import Picture, Thing
from mini_opsin.shapes import draw_shape, outline
from mini_opsin.words import EMOJI, RGB, SHAPES

Spot = tuple[float, float, float]  # x, y, radius in pixels of the final picture


def place(rng: random.Random, n: int, size: Size) -> list[Spot]:
    """n spots that do not overlap; fewer only where 60 attempts found no room."""
    w, h = size
    side = min(w, h)
    largest = side * (0.46, 0.30, 0.25, 0.22, 0.19)[n - 1]
    smallest = max(6.5, side * (0.13 if n == 1 else 0.10))
    spots: list[Spot] = []
    for attempt in range(60):
        shared = rng.uniform(smallest, largest) if rng.random() < 0.5 else None
        spots = []
        for _ in range(n):
            r = shared or rng.uniform(smallest, largest)
            x, y = rng.uniform(r + 1, max(r + 1, w - r - 1)), rng.uniform(r + 1, max(r + 1, h - r - 1))
            if all(math.hypot(x - a, y - b) > 1.04 * (r + c) for a, b, c in spots):
                spots.append((x, y, r))
        if len(spots) == n:
            return spots
        if attempt % 10 == 9:
            largest = max(smallest, largest * 0.85)
    return spots


def reading_order(spots: list[Spot], size: Size) -> list[Spot]:
    """Left to right; a column (all x close together) reads from top to bottom."""
    xs = [x for x, _, _ in spots]
    column = max(xs) - min(xs) < 0.12 * size[0]
    return sorted(spots, key=lambda s: s[1] if column else s[0])


@dataclass
class Canvas:
    """The picture being painted, `scale` times its final size, and the map of owners at its final size."""

    image: Image.Image
    owner: Image.Image
    scale: int
    ground: RGB

    def paint_shape(self, rng: random.Random, name: str, ink: tuple[str, RGB], spot: Spot, index: int) -> Thing:
        x, y, r = spot
        points = [(x + px * r, y + py * r) for px, py in outline(rng, name)]
        large = [(px * self.scale, py * self.scale) for px, py in points]
        draw_shape(rng, ImageDraw.Draw(self.image), large, ink[1], self.ground, r * self.scale)
        ImageDraw.Draw(self.owner).polygon(points, fill=index)
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        return Thing("shape", name, ink[0], (min(xs), min(ys), max(xs), max(ys)))

    def paste_emoji(self, rng: random.Random, font: Path, name: str, spot: Spot, index: int) -> Thing:
        x, y, r = spot
        bitmap = emoji_bitmap(font, rng.choice(EMOJI[name]))
        if rng.random() < 0.3:
            bitmap = bitmap.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.3:
            bitmap = bitmap.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
        k = 2 * r * self.scale / max(bitmap.size)
        size = (max(1, round(bitmap.width * k)), max(1, round(bitmap.height * k)))
        stamp = bitmap.resize(size, Image.Resampling.BILINEAR)
        corner = (round(x * self.scale - stamp.width / 2), round(y * self.scale - stamp.height / 2))
        self.image.paste(stamp, corner, stamp)
        w, h = stamp.width / self.scale, stamp.height / self.scale
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        ImageDraw.Draw(self.owner).ellipse(box, fill=index)
        return Thing("emoji", name, None, box)


def pick_kind(rng: random.Random, emoji_share: float, font: Path | None) -> str:
    roll = rng.random()
    if font is None:
        return "shape"
    return "emoji" if roll < emoji_share else "mixed" if roll < emoji_share + 0.06 else "shape"


def scene(rng: random.Random, size: Size, n: int, fonts: Fonts, emoji_share: float = 0.4) -> Picture:
    """n shapes or emoji (0 gives an empty ground) in a picture of size (W, H)."""
    scale = rng.choice((1, 2, 3)) if min(size) < 80 else rng.choice((1, 2, 2))
    ground, ground_name = pick_ground(rng)
    large = ground_image(rng, (size[0] * scale, size[1] * scale), ground)
    canvas = Canvas(large, Image.new("L", size), scale, ground)
    kind = pick_kind(rng, emoji_share, fonts.emoji)
    spots = reading_order(place(rng, n, size), size) if n else []
    uniform = n > 1 and rng.random() < 0.25  # n of the same: what people draw to test counting
    one_shape = not uniform and n > 1 and rng.random() < 0.15  # the same shape in several colours
    shape, ink, name = rng.choice(SHAPES), pick_ink(rng, ground, ground_name), rng.choice(list(EMOJI))
    things: list[Thing] = []
    for i, spot in enumerate(spots, start=1):
        is_emoji = kind == "emoji" or (kind == "mixed" and rng.random() < 0.5)
        if not uniform:
            shape = shape if one_shape else rng.choice(SHAPES)
            ink, name = pick_ink(rng, ground, ground_name), rng.choice(list(EMOJI))
        if is_emoji and fonts.emoji:
            things.append(canvas.paste_emoji(rng, fonts.emoji, name, spot, i))
        else:
            things.append(canvas.paint_shape(rng, shape, ink, spot, i))
    return Picture("scene", finish(rng, large, size), np.asarray(canvas.owner), things, ground_name)
