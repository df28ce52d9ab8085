"""Training batches: pictures of one size, their dense labels, and their questions packed into rows."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_opsin import questions
from mini_opsin.canvas import Size
from mini_opsin.clutter import clutter
from mini_opsin.encoder import Encoder
from mini_opsin.fonts import Fonts
from mini_opsin.labels import TOKEN, DenseLabels, dense_labels
from mini_opsin.nouns import Nouns, find_nouns
from mini_opsin.packing import Packed, pack
from mini_opsin.picture import Picture
from mini_opsin.scenes import scene
from mini_opsin.talk import SYSTEM_PROMPTS, small_talk
from mini_opsin.texts import random_text, text_picture


@dataclass
class Stage:
    """What the pictures look like at one point of the curriculum."""

    kinds: dict[str, float]  # picture kind -> weight: scene0..scene5, digit, letter, word, number, clutter
    tasks: dict[str, float]  # question task -> weight
    longest: int  # characters in a word
    pitch: float  # least pixels a character

    def leaning(self, text: bool) -> Stage:
        """Mostly text or mostly scenes: a batch has one size, so wide pictures come in batches of mostly text."""
        damped = ("scene",) if text else ("word", "number")
        kinds = {k: v * (0.25 if k.startswith(damped) else 1.0) for k, v in self.kinds.items()}
        return Stage(kinds, self.tasks, self.longest, self.pitch)


@dataclass
class Batch:
    pixels: Tensor  # uint8 [B, H, W, 3]
    labels: DenseLabels
    packed: Packed
    images_per_row: int
    nouns: Nouns


@dataclass
class Form:
    """How many pictures, and how their questions are put to rows.

    asked: the rows that get questions (a row is one picture, or two where `pair`); the others train the tower alone.
    """

    size: Size
    pictures: int
    asked: int
    budget: int  # text tokens a row
    pair: bool = False
    multi_turn: float = 0.12


def draw(rng: random.Random, kind: str, size: Size, stage: Stage, fonts: Fonts, held_out: bool = False) -> Picture:
    if kind.startswith("scene"):
        return scene(rng, size, int(kind[5:]), fonts)
    if kind == "clutter":
        return clutter(rng, size)
    room = max(1, int(0.92 * size[0] / stage.pitch))
    text = random_text(rng, kind, min(stage.longest, room))
    return text_picture(rng, size, text, stage.pitch, fonts, held_out)


def picture_batch(encoder: Encoder, rng: random.Random, stage: Stage, form: Form, fonts: Fonts) -> Batch:
    n = form.pictures
    kinds = rng.choices(list(stage.kinds), list(stage.kinds.values()), k=n)
    if form.pair:
        kinds = [rng.choice(("scene1", "scene1", "scene1", "scene2")) for _ in kinds]
    drawn = [draw(rng, kind, form.size, stage, fonts) for kind in kinds]
    if form.pair:
        rows = [questions.ask_pair((drawn[2 * i], drawn[2 * i + 1]), rng, 6) for i in range(n // 2)]
    else:
        rows = [questions.ask(p, rng, stage.tasks, 7) for p in drawn[: form.asked]]
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.06 else None
    images = 2 if form.pair else 1
    grid = (form.size[1] // TOKEN, form.size[0] // TOKEN)
    packed = pack(encoder, rng, rows, form.budget, encoder.prefix(images, system), grid, form.multi_turn)
    nouns = find_nouns(encoder, packed.layout, [] if form.pair else drawn[: form.asked])
    pixels = torch.from_numpy(np.stack([p.pixels for p in drawn]))
    return Batch(pixels, dense_labels(drawn), packed, images, nouns)


def chat_batch(encoder: Encoder, rng: random.Random, rows: int, budget: int) -> Packed:
    """Rows of small talk without a picture."""
    items = [[questions.Asked("chat", *small_talk(rng)) for _ in range(4)] for _ in range(rows)]
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.2 else None
    return pack(encoder, rng, items, budget, encoder.prefix(0, system), (0, 0), 0.2)
