"""Colours, grounds, and the wear of real files."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageFilter

from mini_opsin.picture import U8
from mini_opsin.words import COLOURS, RGB

Size = tuple[int, int]  # (width, height) in pixels


def rgb(channels: Iterable[int]) -> RGB:
    red, green, blue = channels
    return red, green, blue


def jitter(rng: random.Random, colour: RGB, amount: int = 14) -> RGB:
    return rgb(max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)


def named_rgb(rng: random.Random, name: str) -> RGB:
    return jitter(rng, rng.choice(COLOURS[name]), rng.choice((0, 6, 14)))


def pick_ground(rng: random.Random) -> tuple[RGB, str | None]:
    """A plain ground and, where it has one, its colour's name. Users draw on white, so two in five are."""
    roll = rng.random()
    if roll < 0.40:
        return (255, 255, 255), "white"
    if roll < 0.62:
        return rgb(rng.randint(222, 255) for _ in range(3)), None
    if roll < 0.70:
        return jitter(rng, (8, 8, 8), 8), "black"
    if roll < 0.92:
        name = rng.choice(list(COLOURS))
        return named_rgb(rng, name), name
    return rgb(rng.randint(0, 255) for _ in range(3)), None


def pick_ink(rng: random.Random, ground: RGB, ground_name: str | None, at_least: float = 120) -> tuple[str, RGB]:
    """A named colour that stands out from the ground."""
    for _ in range(40):
        name = rng.choice(list(COLOURS))
        colour = named_rgb(rng, name)
        if name != ground_name and math.dist(colour, ground) >= at_least:
            return name, colour
    return ("black", (0, 0, 0)) if sum(ground) > 380 else ("white", (255, 255, 255))


def ground_image(rng: random.Random, size: Size, colour: RGB) -> Image.Image:
    if rng.random() < 0.92:
        return Image.new("RGB", size, colour)
    # A gentle gradient; its ends stay near the colour so that the contrast chosen for the ink still holds.
    other = jitter(rng, colour, 35)
    mask = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size)
    return Image.composite(Image.new("RGB", size, colour), Image.new("RGB", size, other), mask)


def finish(rng: random.Random, image: Image.Image, size: Size) -> U8:
    """Shrinks to the final size and adds the wear of real files: low resolution, blur, noise, JPEG."""
    bicubic, box, nearest = Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.NEAREST
    if image.size != size:
        image = image.resize(size, rng.choice((bicubic, bicubic, box)))
    roll = rng.random()
    if roll < 0.07:  # a thumbnail that was blown up
        k = rng.uniform(1.5, 3.0)
        small = image.resize((max(8, int(size[0] / k)), max(8, int(size[1] / k))), box)
        image = small.resize(size, rng.choice((bicubic, nearest)))
    elif roll < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    if rng.random() < 0.08:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 90))
        image = Image.open(buffer).convert("RGB")
    pixels: U8 = np.asarray(image)
    if rng.random() < 0.10:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 12), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels
