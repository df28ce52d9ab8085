"""What the families share about pictures: resizing rules and patches, on numpy arrays (PIL resizes)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from opsin_plugins.spec import U8, Grid, ImageBudget, SpecError

MAX_ASPECT = 200  # past it a smart resize leaves no rows


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
    return high, wide


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
    """U8 [H, W, 3] to U8 [height, width, 3]. resample: PIL's number."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)))


def resize_shortest(image: U8, edge: int, resample: int) -> U8:
    """The shorter side becomes `edge`, the longer one keeps the ratio (rounded down)."""
    height, width = image.shape[:2]
    if height <= width:
        return resize(image, edge, int(edge * width / height), resample)
    return resize(image, int(edge * height / width), edge, resample)


def center_crop(image: U8, height: int, width: int) -> U8:
    """Cuts the middle; where the picture is smaller, pads with zeros."""
    h, w = image.shape[:2]
    top, left = (h - height) // 2, (w - width) // 2
    if top < 0 or left < 0:
        padded = np.zeros((max(h, height), max(w, width), 3), np.uint8)
        down, right = math.ceil((padded.shape[0] - h) / 2), math.ceil((padded.shape[1] - w) / 2)
        padded[down : down + h, right : right + w] = image
        return center_crop(padded, height, width)
    return image[top : top + height, left : left + width]


def patches(image: U8, patch: int, merge: int = 1) -> tuple[U8, Grid]:
    """U8 [H, W, 3] to (U8 [N, 3·p·p], (1, rows, columns)); merge × merge neighbours stand together."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    split = image.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
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
