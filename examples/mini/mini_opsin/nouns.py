"""What a word must have found in the picture by the middle of the decoder.

A noun's token refers to things: 'the red circle' matches all red things at 'red' and only red circles at 'circle'.
Where text is spelled out, the token before each character must know that character's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_opsin.encoder import Encoder
from mini_opsin.labels import IGNORE, cell_and_kind
from mini_opsin.packing import Layout
from mini_opsin.picture import Picture, Thing

NO_PLACE = [IGNORE] * 4
Label = tuple[int, list[int], list[int]]  # index of the token in its row, targets, places


@dataclass
class Nouns:
    at: Tensor  # [Q] flat indices into [R * T]
    targets: Tensor  # [Q, 5]: how many things match (3 = more), then row, column, colour and class of a sole match
    places: Tensor  # [Q, 4]: left/near/right and above/near/below the thing named before; third of the width, height


def find_nouns(encoder: Encoder, layout: Layout, drawn: list[Picture]) -> Nouns:
    """Labels for the rows of `layout`, one picture a row."""
    width = layout.ids.shape[1]
    at: list[int] = []
    targets: list[list[int]] = []
    places: list[list[int]] = []
    for r, picture in enumerate(drawn):
        label = {"text": _spelled, "scene": _named}.get(picture.kind)
        found = label(encoder, layout.ids[r].tolist(), layout.branch[r].tolist(), picture) if label else ()
        for i, target, place in found:
            at.append(r * width + i)
            targets.append(target)
            places.append(place)
    return Nouns(torch.tensor(at, dtype=torch.long), _table(targets, 5), _table(places, 4))


def _table(rows: list[list[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.long).view(-1, columns)


def _named(encoder: Encoder, ids: list[int], branch: list[int], picture: Picture) -> Iterator[Label]:
    last: tuple[int, Thing] | None = None  # the branch and thing of the latest sole match
    for i, token in enumerate(ids):
        name, colour = encoder.noun_of.get(token), encoder.colour_of.get(token)
        if branch[i] < 0 or not (name or colour):
            continue
        if name and i and branch[i - 1] == branch[i]:
            colour = encoder.colour_of.get(ids[i - 1])
        found = [t for t in picture.things if (not name or t.name == name) and (not colour or t.colour == colour)]
        if len(found) != 1:
            yield i, [min(3, len(found)), *NO_PLACE], NO_PLACE
            continue
        before = last[1] if last and last[0] == branch[i] else None
        yield i, [1, *cell_and_kind(found[0])], _place(picture, found[0], before)
        if name:
            last = (branch[i], found[0])


def _place(picture: Picture, thing: Thing, before: Thing | None) -> list[int]:
    size = picture.size
    spot = [c / s for c, s in zip(thing.centre, size, strict=True)]
    thirds = [min(2, max(0, int(3 * v))) for v in spot]
    if before is None or before is thing:
        return [IGNORE, IGNORE, *thirds]
    apart = [v - c / s for v, c, s in zip(spot, before.centre, size, strict=True)]
    return [*(1 if abs(a) < 0.06 else 0 if a < 0 else 2 for a in apart), *thirds]


def _spelled(encoder: Encoder, ids: list[int], branch: list[int], picture: Picture) -> Iterator[Label]:
    """Wherever a branch spells the picture's text: each character's place, at the token that must predict it."""
    spelled = [encoder.vocabulary[c] for c in picture.text]
    n = len(spelled)
    for i in range(1, len(ids) - n + 1) if n > 1 else ():
        if ids[i : i + n] == spelled and branch[i - 1] == branch[i + n - 1] >= 0:
            for k, thing in enumerate(picture.things):
                yield i - 1 + k, [IGNORE, *cell_and_kind(thing)], NO_PLACE
