"""Clutter: texture without a nameable object, the stand-in for photographs. The model should decline it."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mini_opsin.canvas import Size, finish, rgb
from mini_opsin.picture import Picture


def clutter(rng: random.Random, size: Size) -> Picture:
    g = np.random.default_rng(rng.getrandbits(32))
    w, h = size
    total = np.zeros((h, w, 3))
    for octave in (2, 4, 8, 16, 32):
        coarse = Image.fromarray(g.integers(0, 256, (octave, octave, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), float)
        total += smooth * rng.uniform(0.3, 1) / octave ** rng.uniform(0.3, 0.9)
    total = (total - total.min()) / (np.ptp(total) + 1e-6) * 255
    image = Image.fromarray(total.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 14)):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        corners = [(x + rng.gauss(0, w / 5), y + rng.gauss(0, h / 5)) for _ in range(rng.randint(3, 6))]
        draw.polygon(corners, fill=rgb(int(c) for c in g.integers(0, 256, 3)))
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    return Picture("clutter", finish(rng, blurred, size), np.zeros((h, w), np.uint8))
