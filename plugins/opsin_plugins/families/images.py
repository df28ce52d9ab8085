"""What the families share about pictures: resizing rules and patches, on numpy arrays (PIL resizes)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from opsin_plugins.spec import U8, Grid, ImageBudget, SpecError

MAX_ASPECT = 200  # past it a smart resize leaves no rows
REDUCING_GAP = 128  # times that a filter shrinks a side at least, where averages come first: they change no pixel by 2
WHOLE = 4  # times the pixels that are kept, up to which all of a picture is made before its middle is cut out
FILTER_REACH = 5  # pixels on each side, of the picture or (where it shrinks) of the result, that no filter looks past


def smart_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) as multiples of `factor`, near the given ratio, within [min_pixels, max_pixels].

    Source: the Qwen2-VL paper's dynamic resolution; rounding is to even on ties, as in the published processor.
    Raises SpecError for a side ratio over 200.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise SpecError(f"image of {width} x {height} has a side ratio over {MAX_ASPECT}")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return max(factor, high), max(factor, wide)  # (min_pixels 0 would leave a narrow picture no rows)


def pixel_limit(budget: ImageBudget, per_token: int, limit: int) -> int:
    """Pixels that an image may have after resizing: the least of the model's limit and the budget's two.
    per_token: pixels that become one visual token."""
    wishes = [limit]
    if budget.max_pixels is not None:
        wishes.append(budget.max_pixels)
    if budget.max_tokens is not None:
        wishes.append(budget.max_tokens * per_token)
    return min(wishes)


def longest_size(height: int, width: int, longest: int, factor: int) -> tuple[int, int]:
    """(height, width): neither side over `longest`, the ratio kept (rounded down), then up to multiples of `factor`.
    Source: arXiv 2410.07073 (Pixtral) and its published code."""
    ratio = max(height, width) / longest
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return max(1, -(-height // factor)) * factor, max(1, -(-width // factor)) * factor


def resize(image: U8, height: int, width: int, resample: int) -> U8:
    """U8 [H, W, 3] to U8 [height, width, 3]. resample: PIL's number.

    Beside the result, Pillow takes 4 bytes a pixel of the picture and one intermediate, which is no larger than the
    picture or the result: it resizes that side first which makes it so. Its weights would take 16 to 48 bytes a pixel
    of the longer side, so a side that shrinks more than 2 * REDUCING_GAP times is averaged a few pixels at a time
    first.
    """
    if image.shape[:2] == (height, width):
        return image
    method = Image.Resampling(resample)
    return np.asarray(Image.fromarray(image).resize((width, height), method, reducing_gap=REDUCING_GAP))


def resize_and_crop(image: U8, edge: int, height: int, width: int, resample: int) -> U8:
    """The shorter side becomes `edge` and the longer one keeps the ratio (rounded down); of that the middle, U8
    [height, width, 3], with black around a picture that is smaller. What is cut off is made only of pictures of common
    shapes: Pillow resizes a part of one with other roundings, by a level here and there."""
    high, wide = image.shape[:2]
    size = (edge, int(edge * wide / high)) if high <= wide else (int(edge * high / wide), edge)
    top, rows, above = _middle(size[0], height)
    left, columns, before = _middle(size[1], width)
    if size[0] * size[1] <= WHOLE * height * width:
        kept = np.ascontiguousarray(resize(image, *size, resample)[top : top + rows, left : left + columns])
    else:
        kept = resize_part(image, size, (top, left, rows, columns), resample)
    return pad_to(kept, height, width, above, before)


def _middle(length: int, kept: int) -> tuple[int, int, int]:
    """Of a side of so many pixels, the middle `kept`: the first one, how many there are, and how many are missing
    before them."""
    return max(0, (length - kept) // 2), min(length, kept), max(0, (kept - length + 1) // 2)


def resize_part(image: U8, size: tuple[int, int], part: tuple[int, int, int, int], resample: int) -> U8:
    """U8 [rows, columns, 3] of the picture resized to `size`, of which no more is made. part: top, left, rows,
    columns."""
    top, left, rows, columns = part
    if part == (0, 0, *size):
        return resize(image, *size, resample)
    (high, wide), method = image.shape[:2], Image.Resampling(resample)
    down, across = _read(high, size[0], top, rows), _read(wide, size[1], left, columns)
    picture = Image.fromarray(image[down.first : down.last, across.first : across.last])
    # One side after the other, in the order that Pillow takes for the whole picture: what a filter overshoots is cut to
    # 0 to 255 in between, so the other order gives other pixels at sharp edges.
    sides = ["across", "down"] if high - size[0] <= max(0, 2 * (wide - size[1])) else ["down", "across"]
    for side in sides:
        if side == "down":
            box = (0.0, down.begin, float(picture.width), down.end)
            picture = picture.resize((picture.width, rows), method, box)
        else:
            box = (across.begin, 0.0, across.end, float(picture.height))
            picture = picture.resize((columns, picture.height), method, box)
    return np.asarray(picture)


class _Read(NamedTuple):
    """Pixels first to last (exclusive) of a side, and what of them is resized; the rest is what the filter sees."""

    first: int
    last: int
    begin: float
    end: float


def _read(length: int, resized: int, start: int, count: int) -> _Read:
    """What of a side of `length` pixels makes pixels start to start + count when all of it becomes `resized`."""
    scale = length / resized
    begin, end, margin = start * scale, (start + count) * scale, FILTER_REACH * max(1.0, scale) + 1
    first, last = max(0, math.floor(begin - margin)), min(length, math.ceil(end + margin))
    return _Read(first, last, begin - first, min(end, last) - first)


def patches(image: U8, patch: int, merge: int = 1) -> tuple[U8, Grid]:
    """U8 [H, W, 3] to (U8 [N, 3·p·p], (1, rows, columns)); merge × merge neighbours stand together. Of a side that is
    no multiple of the patch the rest is not read, as a convolution leaves it."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    whole = image[: rows * patch, : columns * patch]
    split = whole.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    ordered = split.transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(ordered).reshape(rows * columns, 3 * patch * patch), (1, rows, columns)


def pad_to(image: U8, height: int, width: int, top: int = 0, left: int = 0) -> U8:
    """U8 [H, W, 3] on a black canvas [height, width, 3]."""
    if image.shape[:2] == (height, width):
        return image
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def tiles(image: U8, height: int, width: int) -> list[U8]:
    """An image of whole tiles, cut row by row."""
    return [
        image[top : top + height, left : left + width]
        for top in range(0, image.shape[0], height)
        for left in range(0, image.shape[1], width)
    ]


def tile_patches(parts: list[U8], patch: int, merge: int = 1) -> tuple[U8, Grid]:
    """Tiles of one size to (U8 [t·N, 3·p·p], (t, rows, columns))."""
    found = [patches(part, patch, merge) for part in parts]
    _, rows, columns = found[0][1]
    return np.concatenate([pixels for pixels, _ in found]), (len(parts), rows, columns)
