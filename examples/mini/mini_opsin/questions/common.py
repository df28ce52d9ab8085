"""What the questions share: how a thing is named so that the name fits it alone, and how typing varies."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from mini_opsin.picture import Picture, Thing

QA = tuple[str, str]  # question, answer
Task = Callable[[Picture, random.Random], QA | None]  # None where the task does not apply to the picture


class Asked(NamedTuple):
    """held: a schema writes the answer's first brace and its keys, which are not learned as answers to the question."""

    task: str
    question: str
    answer: str
    held: bool = False


def vary(rng: random.Random, question: str) -> str:
    """Small differences of typing: British spelling, no capital, no question mark."""
    if "color" in question and rng.random() < 0.25:
        question = question.replace("color", "colour")
    if "picture" in question and rng.random() < 0.35:
        question = question.replace("picture", "image")
    if "What is" in question and rng.random() < 0.15:
        question = question.replace("What is", "What's")
    roll = rng.random()
    if roll < 0.06:
        return question[0].lower() + question[1:]
    if roll < 0.12:
        return question.rstrip("?.")
    if roll < 0.16:
        return question + " Answer briefly."
    return question


def scene_of(picture: Picture, least: int, most: int = 5) -> bool:
    return picture.kind == "scene" and least <= len(picture.things) <= most


def unique(things: list[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    counts = Counter(map(key, things))
    return [t for t in things if counts[key(t)] == 1]


def reference(picture: Picture, thing: Thing, rng: random.Random) -> str | None:
    """A phrase that fits this thing alone: 'circle', 'red circle'; None where none does."""
    options = []
    if sum(t.name == thing.name for t in picture.things) == 1:
        options += [thing.name] * 2
    if thing.colour and sum(t.phrase == thing.phrase for t in picture.things) == 1:
        options.append(thing.phrase)
    return rng.choice(options) if options else None
