"""Dense labels: which class and colour every patch and every visual token shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_opsin.picture import I64, Picture, Thing, patch_owner
from mini_opsin.words import COLOURS, DIGITS, EMOJI, LOWER, SHAPES, UPPER

CLASSES: list[str] = [*SHAPES, *EMOJI, *DIGITS, *UPPER, *LOWER]
CLASS_ID = {name: i + 1 for i, name in enumerate(CLASSES)}  # 0 = nothing
COLOUR_ID = {name: i for i, name in enumerate(COLOURS)}
IGNORE = -100
PATCH, TOKEN = 8, 16  # pixels a side of a patch, and of the 2 x 2 patches that become one visual token
MAX_ORDINAL = 8


@dataclass
class DenseLabels:
    """B pictures of N patches and M visual tokens; IGNORE where a picture does not say."""

    patch_class: Tensor  # [B, N]
    patch_colour: Tensor  # [B, N]
    token_class: Tensor  # [B, M]
    token_colour: Tensor  # [B, M]
    ordinal: Tensor  # [B, M] which thing, counted in reading order


def merge_order(grid: Tensor) -> Tensor:
    """[..., gh, gw] -> [..., gh * gw] with the 2 x 2 patches of one visual token beside each other."""
    *lead, h, w = grid.shape
    return grid.reshape(*lead, h // 2, 2, w // 2, 2).transpose(-3, -2).reshape(*lead, h * w)


def cell_and_kind(thing: Thing) -> tuple[int, int, int, int]:
    """Row and column of the visual token at the thing's centre, its colour and its class."""
    x, y = thing.centre
    colour = COLOUR_ID.get(thing.colour or "", IGNORE)
    return max(0, int(y // TOKEN)), max(0, int(x // TOKEN)), colour, CLASS_ID[thing.name]


def label_patches(picture: Picture, patch: int) -> tuple[I64, I64, I64]:
    """(class, colour, ordinal) at each patch of `patch` pixels a side."""
    owner = patch_owner(picture.owner, len(picture.things), patch)
    names = [0, *(CLASS_ID[t.name] for t in picture.things)]
    ground = COLOUR_ID[picture.background] if picture.background else IGNORE
    inks = [ground, *(COLOUR_ID.get(t.colour or picture.ink or "", IGNORE) for t in picture.things)]
    return np.array(names)[owner], np.array(inks)[owner], np.minimum(owner, MAX_ORDINAL)


def dense_labels(drawn: list[Picture]) -> DenseLabels:
    fine, coarse = ([label_patches(p, side) for p in drawn] for side in (PATCH, TOKEN))
    patch_class, patch_colour = (merge_order(torch.from_numpy(np.stack([f[i] for f in fine]))) for i in (0, 1))
    tokens = [torch.from_numpy(np.stack([c[i] for c in coarse])).flatten(1) for i in (0, 1, 2)]
    return DenseLabels(patch_class, patch_colour, *tokens)
