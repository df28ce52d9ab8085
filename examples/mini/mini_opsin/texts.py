"""Pictures of one digit, one letter, a word or a number."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from mini_opsin.canvas import Size, finish, ground_image, pick_ground, pick_ink
from mini_opsin.fonts import Face, Fonts, face
from mini_opsin.picture import Picture, Thing
from mini_opsin.words import DIGITS, DISTINCT_LOWER, LOWER, REAL_WORDS, UPPER


def random_text(rng: random.Random, kind: str, longest: int) -> str:
    """kind: digit | letter | word | number; `longest` characters at most. Half of the words are random letters."""
    if kind == "digit":
        return rng.choice(DIGITS)
    if kind == "letter":
        return rng.choice(UPPER if rng.random() < 0.7 else DISTINCT_LOWER)
    if kind == "number":
        return "".join(rng.choice(DIGITS) for _ in range(rng.randint(2, min(5, longest))))
    length = rng.randint(min(3, longest), longest)
    if rng.random() < 0.5:
        word = rng.choice([x for x in REAL_WORDS if len(x) <= longest])
    else:
        word = "".join(rng.choice(LOWER) for _ in range(length))
    return rng.choices((word.upper(), word, word.capitalize()), (0.5, 0.25, 0.25))[0]


def text_picture(
    rng: random.Random, size: Size, text: str, min_pitch: float, fonts: Fonts, held_out: bool = False
) -> Picture:
    """text on one line, as large as fits or smaller, never under min_pitch pixels a character."""
    scale = rng.choice((1, 2, 2))
    w, h = size[0] * scale, size[1] * scale
    ground, ground_name = pick_ground(rng)
    ink_name, ink = pick_ink(rng, ground, ground_name, 160)
    written = pick_face(rng, (w, h), text, min_pitch * scale, fonts, held_out)
    left, top, right, bottom = written.getbbox(text)
    x0, y0 = pick_corner(rng, w, right - left), pick_corner(rng, h, bottom - top)
    canvas = ground_image(rng, (w, h), ground)
    ImageDraw.Draw(canvas).text((x0 - left, y0 - top), text, font=written, fill=ink)
    owner = Image.new("L", size)
    marks = ImageDraw.Draw(owner)
    things: list[Thing] = []
    for i, char in enumerate(text):
        a, b = x0 - left + written.getlength(text[:i]), x0 - left + written.getlength(text[: i + 1])
        box = (a / scale, y0 / scale, b / scale, (y0 + bottom - top) / scale)
        marks.rectangle((box[0], box[1], box[2] - 0.51, box[3]), fill=i + 1)
        things.append(Thing("char", char, None, box))
    if len(text) == 1 and rng.random() < 0.4:
        canvas = canvas.rotate(rng.uniform(-14, 14), Image.Resampling.BILINEAR, fillcolor=ground)
    return Picture("text", finish(rng, canvas, size), np.asarray(owner), things, ground_name, ink_name, text)


def pick_face(rng: random.Random, size: Size, text: str, min_pitch: float, fonts: Fonts, held_out: bool) -> Face:
    """A font at a size that fits the text into 94 % of the width and 90 % of the height."""
    path = rng.choice(fonts.held_out if held_out else fonts.text)
    left, top, right, bottom = face(path, 64).getbbox(text)
    largest = 64 * min(0.94 * size[0] / (right - left), 0.90 * size[1] / (bottom - top))
    needed = 64 * min_pitch * len(text) / (right - left)
    share = rng.uniform(0.5, 1.0) if rng.random() < 0.6 else rng.uniform(0.85, 1.0)
    return face(path, max(8, int(max(min(needed, largest), largest * share))))


def pick_corner(rng: random.Random, room: int, length: float) -> float:
    """Where text of a length starts along one axis: anywhere, or so that it is centred."""
    if rng.random() < 0.6:
        return rng.uniform(0.02 * room, max(0.02 * room, room - length - 0.02 * room))
    return (room - length) / 2
