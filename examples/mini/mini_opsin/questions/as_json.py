"""Answers in JSON: asked for in words, or held to a schema that the question does not tell of."""

from __future__ import annotations

import json
import random

from mini_opsin.picture import Picture
from mini_opsin.questions.common import QA
from mini_opsin.questions.what import CAPTION, describe

Value = str | int | list[str]
Field = tuple[str, Value]

SHAPE = ["shape"] * 6 + ["object", "object", "name", "thing", "type", "label", "kind"]
COLOUR = ["color"] * 3 + ["colour"] * 2
OBJECT = ["object"] * 4 + ["name", "name", "thing", "label", "emoji"]
COUNT = ["count", "count", "number", "number_of_things", "how_many"]
THINGS = ["objects", "things", "items", "shapes"]
CHARACTER = ["character", "text"]
TEXT = ["text", "text", "word", "content"]
GROUND = ["background", "background_color", "background_colour"]
CAPTIONS = ["description", "caption"]

# Of a request that says no keys, under which it is answered with the usual ones.
PLAIN = [
    "Describe the picture as JSON.",
    "Answer as JSON.",
    "What is in the picture? Answer in JSON.",
    "As JSON, please.",
]
PLAIN += ["Describe the picture in JSON.", "Reply with JSON.", "Give me JSON.", "Picture to JSON."]
# What goes with a schema, beside the questions of every other task.
HELD = [*CAPTION, *PLAIN, "Extract the fields.", "Fill in the fields.", "Extract the information from the picture."]
HELD += ["Extract the data.", "Read the picture.", "Classify the picture.", "What is it and which color is it?"]


def free(picture: Picture, rng: random.Random) -> QA | None:
    """The question says what it wants."""
    fields = _fields(picture, rng)
    if not fields:
        return None
    if rng.random() < 0.25:
        return rng.choice(PLAIN), _dump(_usual(picture))
    keys = [key for key, _ in fields]
    named = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]
    spaced = named.replace("_", " ")
    ask = [
        f"{spaced[0].upper()}{spaced[1:]} as JSON.",
        f"Give me the {spaced} as JSON.",
        f"What is in the picture? Answer as JSON with the keys {named}.",
        f"Return JSON with {named}.",
        f"Answer in JSON with {named}.",
        f"JSON with the keys {named}, please.",
        f"Extract the {spaced} as JSON.",
    ]
    return rng.choice(ask), _dump(fields)


def held(picture: Picture, rng: random.Random) -> QA | None:
    """The schema says what is wanted: the answer may have any keys, whatever was asked."""
    fields = _fields(picture, rng)
    if not fields:
        return None
    asked = free(picture, rng) if rng.random() < 0.2 else None
    return asked[0] if asked is not None else rng.choice([*HELD, *_plain_questions(fields)]), _dump(fields)


def _plain_questions(fields: list[Field]) -> list[str]:
    keys = [key.replace("_", " ") for key, _ in fields]
    return [f"What is the {keys[0]}?", f"Tell me the {' and the '.join(keys)}."]


def _dump(fields: list[Field]) -> str:
    return json.dumps(dict(fields), ensure_ascii=False)


def _usual(picture: Picture) -> list[Field]:
    things = picture.things
    if picture.kind == "text":
        return [("text", picture.text)]
    if len(things) != 1:
        return [("objects", [thing.phrase for thing in things])]
    colour = things[0].colour
    return [("shape", things[0].name), ("color", colour)] if colour else [("object", things[0].name)]


def _fields(picture: Picture, rng: random.Random) -> list[Field]:
    """One to three of what can be said of it, in any order; mostly of a lone shape its name and its colour."""
    if picture.kind == "clutter":
        return []
    options = _of_text(picture, rng) if picture.kind == "text" else _of_scene(picture, rng)
    if picture.background:
        options.append((rng.choice(GROUND), picture.background))
    first, rest = options[:2], options[2:]
    if len(picture.things) == 1 and picture.things[0].colour and rng.random() < 0.6:
        return rng.sample(first, 2)
    count = min(len(options), rng.choice((1, 1, 2, 2, 3)))
    chosen = rng.sample(first, min(len(first), count))
    chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
    found = dict(rng.sample(chosen, len(chosen)))
    return list(found.items())


def _of_text(picture: Picture, rng: random.Random) -> list[Field]:
    text = picture.text
    if len(text) == 1:
        kind = "digit" if text.isdigit() else "letter"
        found: list[Field] = [(rng.choice([kind, kind, *CHARACTER]), text)]
    else:
        found = [(rng.choice(TEXT), text)]
    if text.isdigit() and text[0] != "0" and rng.random() < 0.5:
        found = [(rng.choice(("number", "number", "value")), int(text))]
    return [*found, ("length", len(text)), *([("color", picture.ink)] if picture.ink else [])]


def _of_scene(picture: Picture, rng: random.Random) -> list[Field]:
    things = picture.things
    several: list[Field] = [(rng.choice(COUNT), len(things))]
    if len(things) <= 2:
        several.append((rng.choice(CAPTIONS), describe(picture)))
    if len(things) <= 3:
        several.append((rng.choice(THINGS), [thing.phrase for thing in things]))
    if len(things) != 1:
        return rng.sample(several, len(several))
    thing = things[0]
    if thing.kind == "emoji" or thing.colour is None:
        return [(rng.choice(OBJECT), thing.name), *several]
    return [(rng.choice(SHAPE), thing.name), (rng.choice(COLOUR), thing.colour), *several]
