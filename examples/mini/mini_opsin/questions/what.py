"""What a picture shows: captions, and the name or colour of its only thing."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture
from mini_opsin.questions.common import QA, scene_of
from mini_opsin.words import NUMBER_WORDS, OFF_TOPIC, article, plural, sentence

CAPTION = [
    "What is in the picture?",
    "What is in the picture?",
    "Describe the picture.",
    "What do you see?",
    "What is this?",
    "What does the picture show?",
    "Describe this.",
    "What can you see in the picture?",
    "Describe the picture in detail.",
    "What is shown in the picture?",
    "Tell me about this picture.",
    "Caption this picture.",
    "What do you see in the picture?",
    "What is in this picture?",
    "What is it?",
    "Please describe the picture.",
    "Tell me what you see.",
]


def describe(picture: Picture) -> str:
    things = picture.things
    if not things:
        return "Nothing."
    phrases = [t.phrase for t in things]
    if len(set(phrases)) == 1 and len(phrases) > 1:
        return f"{NUMBER_WORDS[len(phrases)]} {plural(phrases[0])}."
    parts = [article(p) for p in phrases]
    return sentence(parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])


def caption(picture: Picture, rng: random.Random) -> QA | None:
    if picture.kind == "clutter":
        return rng.choice(CAPTION), OFF_TOPIC
    text = picture.text
    if picture.kind == "text":
        if len(text) != 1:
            return rng.choice(CAPTION), f'The text "{text}".' if text.isalpha() else f"The number {text}."
        if text in "0O1Il":  # a lone O may be either
            return None
        return rng.choice(CAPTION), f"The {'digit' if text.isdigit() else 'letter'} {text}."
    if len(picture.things) > 3 and len({t.phrase for t in picture.things}) > 1:
        return None
    return rng.choice(CAPTION), describe(picture)


def shape(picture: Picture, rng: random.Random) -> QA | None:
    if not scene_of(picture, 1, 1) or picture.things[0].kind != "shape":
        return None
    ask = [
        "What shape is this?",
        "What shape is in the picture?",
        "Which shape is this?",
        "What shape is it?",
        "Name the shape.",
        "What is the shape?",
        "What shape do you see?",
        "Which shape is in the picture?",
        "What kind of shape is this?",
        "What shape is shown?",
    ]
    return rng.choice(ask), picture.things[0].name.capitalize()


def colour(picture: Picture, rng: random.Random) -> QA | None:
    if not scene_of(picture, 1, 1) or not picture.things[0].colour:
        return None
    name = picture.things[0].name
    ask = [
        f"What color is the {name}?",
        "What color is the shape?",
        "What color is it?",
        "What color is this?",
        f"What color is this {name}?",
        "What color is this shape?",
        "Which color is the shape?",
        "Name the color of the shape.",
        "What is the color of the shape?",
        f"What is the color of the {name}?",
        "What color do you see?",
        "What color is the object?",
    ]
    return rng.choice(ask), picture.things[0].colour.capitalize()


def emoji_name(picture: Picture, rng: random.Random) -> QA | None:
    if not scene_of(picture, 1, 1) or picture.things[0].kind != "emoji":
        return None
    ask = [
        "What object is this?",
        "What object is in the picture?",
        "Name the object.",
        "Which object is this?",
        "What emoji is this?",
        "Which emoji is this?",
        "What object do you see?",
        "What is the object in the picture?",
        "What thing is this?",
    ]
    return rng.choice(ask), picture.things[0].name.capitalize()
