"""Printed text and grounds: reading, first and last characters, lengths, colours."""

from __future__ import annotations

import random

from mini_opsin.picture import Picture
from mini_opsin.questions.common import QA


def is_line(picture: Picture) -> bool:
    return picture.kind == "text" and len(picture.text) > 1


def character(picture: Picture, rng: random.Random) -> QA | None:
    if picture.kind != "text" or len(picture.text) != 1:
        return None
    kind = "digit" if picture.text.isdigit() else "letter"
    ask = [
        f"What {kind} is this?",
        f"Which {kind} is this?",
        f"What {kind} is in the picture?",
        f"Read the {kind}.",
        f"What {kind} do you see?",
        f"Which {kind} is shown?",
        f"Name the {kind}.",
    ]
    if kind == "digit":
        ask += ["What number is this?", "Which number is this?", "What number is in the picture?"]
    return rng.choice(ask), picture.text


def read(picture: Picture, rng: random.Random) -> QA | None:
    """A word is answered in quotes: letters inside quotes are single tokens."""
    if not is_line(picture):
        return None
    if picture.text.isdigit():
        ask = [
            "What number is this?",
            "What number is in the picture?",
            "Read the number.",
            "Which number is this?",
            "What number do you see?",
            "Which number is shown?",
            "What is the number?",
            "What does it say?",
        ]
        return rng.choice(ask), picture.text
    ask = [
        "What does it say?",
        "Read the text.",
        "What word is this?",
        "What is written in the picture?",
        "Read the word.",
        "What text is in the picture?",
        "What does the text say?",
        "What does the picture say?",
        "Which word is this?",
        "What is the word?",
        "What is written here?",
        "Transcribe the text.",
        "What word do you see?",
    ]
    return rng.choice(ask), f'"{picture.text}"'


def end_char(picture: Picture, rng: random.Random) -> QA | None:
    if not is_line(picture):
        return None
    kind, last = ("digit" if picture.text.isdigit() else "letter"), rng.random() < 0.5
    return f"What is the {'last' if last else 'first'} {kind}?", picture.text[-1 if last else 0]


def text_length(picture: Picture, rng: random.Random) -> QA | None:
    if not is_line(picture):
        return None
    kind = "digits" if picture.text.isdigit() else "letters"
    ask = [f"How many {kind} are there?", f"How many {kind} are in the picture?", f"Count the {kind}."]
    return rng.choice(ask), str(len(picture.text))


def ground(picture: Picture, rng: random.Random) -> QA | None:
    if not picture.background:
        return None
    ask = ["What color is the background?", "What is the background color?", "What is the color of the background?"]
    return rng.choice(ask), picture.background.capitalize()


def ink(picture: Picture, rng: random.Random) -> QA | None:
    if not picture.ink:
        return None
    noun = "text" if len(picture.text) > 1 else "digit" if picture.text.isdigit() else "letter"
    ask = [f"What color is the {noun}?", f"What is the color of the {noun}?", "What color is it?"]
    return rng.choice(ask), picture.ink.capitalize()
