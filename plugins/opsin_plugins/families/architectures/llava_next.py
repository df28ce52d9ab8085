"""LLaVA-NeXT (1.6): the picture whole and in tiles, with a learned end for every row. Source: the LLaVA-NeXT report,
2024.

Visual tokens of the tiles are laid out as one large grid, of which the rows and columns that show no picture are left
out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opsin_plugins.families.config_fields import integer
from opsin_plugins.families.image_processors import LLAVA_NEXT, edge, normalization, resample_of, square
from opsin_plugins.families.images import pad_to, resize, tile_patches, tiles
from opsin_plugins.families.llava_like import LlavaStyle, check_selection, claiming_encoder, model_spec, vision_config
from opsin_plugins.spec import (
    I32,
    U8,
    Config,
    ImageBudget,
    ImageSpec,
    ModelFiles,
    ModelSpec,
    Prefix,
    Rename,
    Rule,
    SpecError,
    VisualItem,
)

NEWLINE = -1


class LlavaNext(LlavaStyle):
    name = "llava_next"

    def spec(self, files: ModelFiles) -> ModelSpec:
        encoder = claiming_encoder(files)
        vision = vision_config(files.config, encoder)
        settings = LLAVA_NEXT.resolve(files.preprocessor)
        tower = encoder.spec(vision, normalization(settings))
        check_selection(files.config, tower)
        if tower.keep_class_token:
            raise SpecError("vision_feature_select_strategy 'full' keeps a class token, which has no place in a grid")
        image = _image(settings, files.config, tower.patch, integer(vision, "image_size", 224))
        return model_spec(self.name, files, (encoder, tower, image), {"newline": True})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return [
            Prefix("image_newline", "model.image_newline"),
            Rename("model.image_newline", "projector.newline"),
            *super().weights(spec),
        ]

    def prepare(self, image: U8, spec: ModelSpec, budget: ImageBudget) -> VisualItem:
        assert spec.image is not None
        return prepare(image, spec.image, budget)


def prepare(image: U8, spec: ImageSpec, budget: ImageBudget) -> VisualItem:
    """The whole picture first (its ratio not kept), then its tiles; under a tight budget the whole picture alone."""
    side, per_side = spec.size[0], spec.size[0] // spec.patch
    whole = resize(image, side, side, spec.resample)
    allowed = [canvas for canvas in spec.pinpoints if _within(canvas, spec, budget)]
    order: I32 = np.arange(per_side**2, dtype=np.int32)
    parts, layout = [whole], (1, 1)
    if allowed:
        height, width = best_pinpoint(image.shape[0], image.shape[1], allowed)
        parts += tiles(_on_canvas(image, height, width, spec.resample), side, side)
        layout = (height // side, width // side)
        order = np.concatenate([order, _grid_order(image.shape[0], image.shape[1], layout, per_side)])
    else:
        order = np.append(order, np.int32(NEWLINE))
    pixels, grid = tile_patches(parts, spec.patch)
    return VisualItem(pixels, grid, tokens=len(order), tiles=layout, arrange=order)


def _image(settings: Config, config: Config, patch: int, side: int) -> ImageSpec:
    """side: pixels a side of the tower's pictures, and so of a tile."""
    tile = edge(settings, "size", "shortest_edge", int_is_square=False) or square(settings, "size")
    if (tile, square(settings, "crop_size")) != (side, side):
        raise SpecError(
            f"a tower of {side} pixels a side needs size and crop_size to match, got {settings['size']!r} and "
            f"{settings['crop_size']!r}"
        )
    canvases = _pinpoints(settings["image_grid_pinpoints"], side)
    written = config.get("image_grid_pinpoints")
    if _pinpoints(LLAVA_NEXT.defaults["image_grid_pinpoints"] if written is None else written, side) != canvases:
        raise SpecError("image_grid_pinpoints of config.json and of the image processor differ")
    return ImageSpec("tiles", resample_of(settings), patch, size=(side, side), pinpoints=canvases)


def _pinpoints(value: object, side: int) -> tuple[tuple[int, int], ...]:
    found = []
    for point in value if isinstance(value, Sequence) else ():
        match point:
            case [int(height), int(width)] if height > 0 and width > 0 and height % side == 0 and width % side == 0:
                found.append((height, width))
            case _:
                raise SpecError(f"image_grid_pinpoints: {point!r} is no canvas of whole tiles of {side} pixels")
    if not found:
        raise SpecError(f"image_grid_pinpoints {value!r} names no canvas")
    return tuple(found)


def _within(canvas: tuple[int, int], spec: ImageSpec, budget: ImageBudget) -> bool:
    height, width = canvas
    side, per_side = spec.size[0], spec.size[0] // spec.patch
    rows, columns = height // side * per_side, width // side * per_side
    tokens = per_side**2 + rows * (columns + 1)
    return (budget.max_pixels is None or height * width <= budget.max_pixels) and (
        budget.max_tokens is None or tokens <= budget.max_tokens
    )


def best_pinpoint(height: int, width: int, canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas that keeps most of the picture's pixels; of several, the one with the least left over."""

    def kept_and_waste(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=kept_and_waste)


def _on_canvas(image: U8, height: int, width: int, resample: int) -> U8:
    """As large as fits with its ratio, in the middle of a black canvas."""
    down, across = height / image.shape[0], width / image.shape[1]
    if across < down:
        size = (min(math.ceil(image.shape[0] * across), height), width)
    else:
        size = (height, min(math.ceil(image.shape[1] * down), width))
    return pad_to(resize(image, *size, resample), height, width, (height - size[0]) // 2, (width - size[1]) // 2)


def _grid_order(height: int, width: int, layout: tuple[int, int], per_side: int) -> I32:
    """Which feature stands where in the large grid, row by row. The first per_side² are those of the whole picture."""
    rows, columns = layout[0] * per_side, layout[1] * per_side
    row, column = np.indices((rows, columns), dtype=np.int32)
    tile = 1 + row // per_side * layout[1] + column // per_side
    order = tile * per_side**2 + row % per_side * per_side + column % per_side
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        order = order[cut : rows - cut]
    else:
        cut = (columns - int(round(width * (rows / height), 7))) // 2
        order = order[:, cut : columns - cut]
    ended = np.concatenate([order, np.full((len(order), 1), NEWLINE, np.int32)], 1)
    return ended.ravel().astype(np.int32)
