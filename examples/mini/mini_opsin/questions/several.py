"""Pictures with several things: how many there are, and looking one up by its name or its colour."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture
from mini_opsin.questions.common import QA, scene_of, unique
from mini_opsin.words import plural


def count(picture: Picture, rng: random.Random) -> QA | None:
    if not scene_of(picture, 0):
        return None
    things = picture.things
    nouns = ["objects", "things", "objects"]
    if all(t.kind == "shape" for t in things):
        nouns = ["shapes", "shapes", "objects"]
    if things and len({t.name for t in things}) == 1:
        nouns += [plural(things[0].name)] * 3
    noun = rng.choice(nouns)
    ask = [
        f"How many {noun} are there?",
        f"How many {noun} are in the picture?",
        f"How many {noun} do you see?",
        f"How many {noun} are there in the picture?",
        f"Count the {noun}.",
        f"How many {noun}?",
        f"How many {noun} can you see?",
    ]
    return rng.choice(ask), str(len(things))


def count_of(picture: Picture, rng: random.Random) -> QA | None:
    """How many of one name or colour, among others."""
    if not scene_of(picture, 2):
        return None
    thing = rng.choice(picture.things)
    if thing.colour and rng.random() < 0.5:
        n = sum(t.colour == thing.colour for t in picture.things)
        noun = f"{thing.colour} {rng.choice(('shapes', 'objects'))}"
    else:
        n, noun = sum(t.name == thing.name for t in picture.things), plural(thing.name)
    ask = [f"How many {noun} are there?", f"How many {noun} are in the picture?", f"Count the {noun}."]
    return rng.choice(ask), str(n)


def colour_of(picture: Picture, rng: random.Random) -> QA | None:
    options = [(t.name, t.colour) for t in unique(picture.things, lambda t: t.name) if t.colour]
    if not scene_of(picture, 2) or not options:
        return None
    name, colour = rng.choice(options)
    ask = [
        f"What color is the {name}?",
        f"What is the color of the {name}?",
        f"Which color is the {name}?",
        f"Name the color of the {name}.",
        f"What color does the {name} have?",
    ]
    return rng.choice(ask), colour.capitalize()


def shape_of(picture: Picture, rng: random.Random) -> QA | None:
    options = [t for t in unique(picture.things, lambda t: t.colour) if t.colour]
    if not scene_of(picture, 2) or not options:
        return None
    thing = rng.choice(options)
    ask = [
        f"What shape is {thing.colour}?",
        f"Which shape is {thing.colour}?",
        f"What shape is the {thing.colour} one?",
        f"What is the shape of the {thing.colour} object?",
        f"What shape is the {thing.colour} object?",
        f"What is the {thing.colour} shape?",
    ]
    return rng.choice(ask), thing.name.capitalize()
