"""Pictures brought to another size before the model's own preprocessing, as fine-tuning recipes ask for it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from opsin_plugins.spec import U8, ImageSpec
from opsin_server.jobs.options import ImageOptions

UNSAID = 512  # the side of "min" where the model's vision has no size of its own


def resized(image: U8, options: ImageOptions, spec: ImageSpec) -> U8:
    """U8 [H, W, 3] to U8 [H', W', 3], by Lanczos; the same array where nothing changes."""
    height, width = image.shape[:2]
    target = target_size(width, height, options, spec)
    if target == (width, height):
        return image
    return np.ascontiguousarray(Image.fromarray(image).resize(target, Image.Resampling.LANCZOS))


def target_size(width: int, height: int, options: ImageOptions, spec: ImageSpec) -> tuple[int, int]:
    """(width, height) of the picture that preprocessing is given."""
    if options.size is not None:
        target = options.size
    elif options.resize == "max":
        return width, height
    else:
        limit = vision_side(spec) if options.resize == "min" else options.resize
        side = {"width": width, "height": height, "max": max(width, height), "min": min(width, height)}[options.side]
        ratio = min(1.0, limit / side)
        target = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    if not options.snap:
        return target
    step = spec.patch * spec.merge
    return max(step, round(target[0] / step) * step), max(step, round(target[1] / step) * step)


def vision_side(spec: ImageSpec) -> int:
    return max(spec.size) or spec.longest_edge or spec.shortest_edge or UNSAID
