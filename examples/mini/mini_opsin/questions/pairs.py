"""Questions about two pictures in one turn."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture
from mini_opsin.questions.common import QA, Asked, vary
from mini_opsin.questions.what import caption
from mini_opsin.words import article

Pair = tuple[Picture, Picture]


def which_image(pair: Pair, rng: random.Random) -> QA | None:
    """Which of two pictures holds a thing that the other does not."""
    index = rng.randrange(2)
    here, other = pair[index], pair[1 - index]
    options = []
    for thing in here.things if here.kind == "scene" else []:
        if all(t.name != thing.name for t in other.things):
            options += [article(thing.name)] * 2
        if thing.colour and all(t.colour != thing.colour for t in other.things):
            options.append(article(f"{thing.colour} {rng.choice(('shape', 'object'))}"))
        if thing.colour and all(t.phrase != thing.phrase for t in other.things):
            options.append(article(thing.phrase))
    if not options:
        return None
    what = rng.choice(options)
    ask = [
        f"Which image has {what}?",
        f"Which picture has {what}?",
        f"Which of the two images shows {what}?",
        f"In which image is {what}?",
        f"Which image shows {what}?",
        f"Which image contains {what}?",
    ]
    return rng.choice(ask), ("First", "Second")[index]


def one_of_two(pair: Pair, rng: random.Random) -> QA | None:
    index = rng.randrange(2)
    nth, described = ("first", "second")[index], caption(pair[index], rng)
    if described is None:
        return None
    ask = [
        f"What is in the {nth} image?",
        f"What is in the {nth} picture?",
        f"Describe the {nth} image.",
        f"What does the {nth} image show?",
        f"What do you see in the {nth} picture?",
    ]
    return rng.choice(ask), described[1]


def ask_pair(pair: Pair, rng: random.Random, n: int) -> list[Asked]:
    """Up to n questions about two pictures, two in three of them which_image."""
    out: list[Asked] = []
    for _ in range(n):
        name = rng.choice(("which_image", "which_image", "one_of_two"))
        found = which_image(pair, rng) if name == "which_image" else one_of_two(pair, rng)
        if found:
            out.append(Asked(name, vary(rng, found[0]), found[1]))
    return out
