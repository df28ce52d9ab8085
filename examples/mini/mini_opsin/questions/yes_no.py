"""Yes or no. The answer is drawn first, so that both are as frequent, and near misses are preferred: the right shape
in the wrong colour, or a colour and a shape that are both present but on different things."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture, Thing
from mini_opsin.questions.common import QA, scene_of, unique
from mini_opsin.words import COLOURS, EMOJI, SHAPES, article


def exists(picture: Picture, rng: random.Random) -> QA | None:
    if picture.kind != "scene":
        return None
    things, yes = picture.things, rng.random() < 0.5
    if yes and not things:
        return None
    what = article(_present(things, rng) if yes else _absent(things, rng))
    ask = [
        f"Is there {what}?",
        f"Is there {what}?",
        f"Is there {what} in the picture?",
        f"Do you see {what}?",
        f"Can you see {what}?",
        f"Does the picture show {what}?",
        f"Is {what} in the picture?",
    ]
    return rng.choice(ask), "Yes" if yes else "No"


def _present(things: list[Thing], rng: random.Random) -> str:
    thing = rng.choice(things)
    if thing.colour is None:
        return thing.name
    return rng.choice([thing.name, thing.phrase, f"{thing.colour} {rng.choice(('shape', 'object'))}"])


def _absent(things: list[Thing], rng: random.Random) -> str:
    names, colours = {t.name for t in things}, {t.colour for t in things if t.colour}
    other_shape = rng.choice([s for s in SHAPES if s not in names])
    other_colour = rng.choice([c for c in COLOURS if c not in colours])
    emoji_only = things and not colours
    if emoji_only or (not colours and rng.random() < 0.5):
        return rng.choice([e for e in EMOJI if e not in names]) if rng.random() < 0.8 else other_shape
    roll = rng.random()
    if roll < 0.30:
        return other_shape
    if roll < 0.45:
        return f"{other_colour} {rng.choice(('shape', 'object'))}"
    if not things:
        return f"{other_colour} {other_shape}"
    thing = rng.choice([t for t in things if t.colour])
    phrases = {t.phrase for t in things}
    near = [f"{a.colour} {b.name}" for a in things for b in things if a.colour and b.colour]
    near = [p for p in near if p not in phrases]
    if near and rng.random() < 0.5:
        return rng.choice(near)
    return rng.choice([f"{other_colour} {thing.name}", f"{thing.colour} {other_shape}"])


def is_it(picture: Picture, rng: random.Random) -> QA | None:
    """'Is the circle red?' and, for one thing, 'Is this a circle?'"""
    if not scene_of(picture, 1, 4):
        return None
    thing, yes = rng.choice(picture.things), rng.random() < 0.5
    answer = "Yes" if yes else "No"
    if len(picture.things) == 1 and rng.random() < 0.5:
        pool = SHAPES if thing.kind == "shape" else list(EMOJI)
        name = article(thing.name if yes else rng.choice([n for n in pool if n != thing.name]))
        return rng.choice([f"Is this {name}?", f"Is it {name}?"]), answer
    if thing not in unique(picture.things, lambda t: t.name) or not thing.colour:
        return None
    others = [t.colour for t in picture.things if t.colour and t.colour != thing.colour]
    pool = others if others and rng.random() < 0.6 else [c for c in COLOURS if c != thing.colour]
    return f"Is the {thing.name} {thing.colour if yes else rng.choice(pool)}?", answer
