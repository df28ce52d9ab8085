"""Held-out accuracy for each task: an answer counts only where every token of it is right.

With teacher forcing, "every token is the argmax given the right ones before it" is the same as "greedy decoding gives
exactly this answer", so one forward pass marks hundreds of questions.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import torch
from torch import nn

from mini_opsin import curriculum
from mini_opsin.batches import Batch, Form, picture_batch
from mini_opsin.encoder import Encoder
from mini_opsin.fonts import Fonts
from mini_opsin.forward import EMBEDDING, EXACT, Rounding, by_row, cast, decoder, vision
from mini_opsin.model import sizes_of
from mini_opsin.ranks import total, world

Table = dict[str, tuple[int, int]]  # task -> (right, asked)
BUDGET = 128  # text tokens a row


def exam_batches(encoder: Encoder, seed: int, n: int, fonts: Fonts, pictures: int = 32) -> list[Batch]:
    """n batches from a seed of their own: single pictures, one batch in eight of picture pairs."""
    rng, stage, out = random.Random(seed), curriculum.exam(), []
    for i in range(n):
        text = i % 5 in (1, 3)
        size = rng.choice(curriculum.WIDE if text else curriculum.LARGE)
        form = Form(size, pictures, pictures, BUDGET, pair=i % 8 == 7, multi_turn=0.0)
        out.append(picture_batch(encoder, rng, stage.leaning(text), form, fonts))
    return out


@torch.no_grad()
def marks(model: nn.Module, batch: Batch, dtype: torch.dtype, how: Rounding = EXACT) -> list[bool]:
    """Whether each question of the batch is answered exactly right."""
    w = cast(model, dtype)
    sizes, device, packed = sizes_of(w), w[EMBEDDING].device, batch.packed
    _, visual = vision(w, sizes, batch.pixels.to(device))
    hidden = decoder(w, sizes, packed.layout, by_row(packed.layout, visual, batch.images_per_row), how).final
    logits = hidden.flatten(0, 1)[packed.target_at.to(device)] @ w[EMBEDDING].T
    right = logits.argmax(-1).cpu() == packed.target
    return [bool(answer.all()) for answer in torch.split(right, packed.lengths)]


def score(model: nn.Module, exam: list[Batch], dtype: torch.dtype, how: Rounding = EXACT) -> Table:
    """Each rank marks its share of the exam; all get the whole table."""
    rank, ranks = world()
    names = sorted({asked.task for batch in exam for asked in batch.packed.asked})
    counts = torch.zeros(len(names), 2, dtype=torch.long)
    for batch in exam[rank::ranks]:
        for asked, right in zip(batch.packed.asked, marks(model, batch, dtype, how), strict=True):
            counts[names.index(asked.task)] += torch.tensor([int(right), 1])
    table: list[list[int]] = total(counts).tolist()
    return {name: (right, n) for name, (right, n) in zip(names, table, strict=True)}


def overall(table: Table) -> float:
    """Mean accuracy over tasks, in percent."""
    return round(sum(100 * right / n for right, n in table.values()) / len(table), 2)


def majority(exam: list[Batch]) -> dict[str, float]:
    """For each task the share of its most frequent answer: what a model blind to the picture could reach."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for batch in exam:
        for asked in batch.packed.asked:
            answers[asked.task][asked.answer] += 1
    return {task: 100 * max(c.values()) / c.total() for task, c in answers.items()}
