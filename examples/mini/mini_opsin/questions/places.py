"""Where things are: in the picture, and to each other."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture, Thing
from mini_opsin.questions.common import QA, reference, scene_of
from mini_opsin.words import UNSURE, article, sentence

PLACES = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]]
SIDES = ["on the left", "on the right", "at the top", "at the bottom"]
FURTHER = dict(zip(SIDES, ["further left", "further right", "higher", "lower"], strict=True))
RELATION = dict(zip(SIDES, ["left of", "right of", "above", "below"], strict=True))
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def cell(picture: Picture, thing: Thing) -> str | None:
    """The thing's place in a 3 x 3 grid; None within 4 % of a border between cells."""
    w, h = picture.size
    x, y = thing.centre[0] / w, thing.centre[1] / h
    if min(abs(v - b) for v in (x, y) for b in (1 / 3, 2 / 3)) < 0.04:
        return None
    return PLACES[min(2, int(y * 3))][min(2, int(x * 3))]


def where(picture: Picture, rng: random.Random) -> QA | None:
    if not scene_of(picture, 1):
        return None
    thing = rng.choice(picture.things)
    name, spot = reference(picture, thing, rng), cell(picture, thing)
    if not name or not spot:
        return None
    ask = [f"Where is the {name}?", f"Where in the picture is the {name}?", f"Where do you see the {name}?"]
    return rng.choice(ask), spot.capitalize()


def ordered(picture: Picture, rng: random.Random) -> tuple[Thing, Thing, str] | None:
    """Two things clearly apart along one axis, the one on the named side first, and that side."""
    w, h = picture.size
    pairs = [(a, b) for a in picture.things for b in picture.things if a is not b and a.phrase != b.phrase]
    rng.shuffle(pairs)
    for a, b in pairs:
        dx, dy = (b.centre[0] - a.centre[0]) / w, (b.centre[1] - a.centre[1]) / h
        apart = [dx > 0.15, dx < -0.15, dy > 0.15, dy < -0.15]
        options = [side for side, holds in zip(SIDES, apart, strict=True) if holds]
        if options:
            return a, b, rng.choice(options)
    return None


def side(picture: Picture, rng: random.Random) -> QA | None:
    """Two things: which one is on a given side."""
    found = ordered(picture, rng) if scene_of(picture, 2, 2) else None
    if found is None:
        return None
    thing, _, named = found
    ask = [f"What is {named}?", f"What do you see {named}?", f"Which object is {named}?"]
    return rng.choice(ask), sentence(article(thing.phrase))


def compare(picture: Picture, rng: random.Random) -> QA | None:
    """'Which is on the left, the circle or the star?'"""
    found = ordered(picture, rng) if scene_of(picture, 2, 4) else None
    if found is None:
        return None
    name, other = reference(picture, found[0], rng), reference(picture, found[1], rng)
    if name is None or other is None:
        return None
    first, second = rng.sample([name, other], 2)
    how = found[2] if len(picture.things) == 2 and rng.random() < 0.6 else FURTHER[found[2]]
    return f"Which is {how}, the {first} or the {second}?", f"The {name}"


def beside(picture: Picture, rng: random.Random) -> QA | None:
    """'What is left of the circle?' with two things, so that the answer is unique."""
    found = ordered(picture, rng) if scene_of(picture, 2, 2) else None
    name = reference(picture, found[1], rng) if found else None
    if found is None or name is None:
        return None
    how = RELATION[found[2]]
    ask = [f"What is {how} the {name}?", f"What do you see {how} the {name}?"]
    if how.endswith("of"):
        ask.append(f"What is to the {how} the {name}?")
    return rng.choice(ask), sentence(article(found[0].phrase))


def relation(picture: Picture, rng: random.Random) -> QA | None:
    """'Is the circle left of the star?' is declined.

    It stayed at chance in this size and time, while "which is further left, the circle or the star?" was learned.
    A guess is worse than none, so the model is taught to say that it is not sure.
    """
    found = ordered(picture, rng) if scene_of(picture, 2, 3) else None
    if found is None:
        return None
    first, second = reference(picture, found[0], rng), reference(picture, found[1], rng)
    if first is None or second is None:
        return None
    how = RELATION[found[2]]
    if rng.random() >= 0.5:  # half of them would be false
        if rng.random() < 0.5:
            how = OPPOSITE[how]
        else:
            first, second = second, first
    link = rng.choice((how, f"to the {how}")) if how.endswith("of") else how
    return f"Is the {first} {link} the {second}?", UNSURE
