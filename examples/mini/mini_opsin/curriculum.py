"""What is shown and asked when: from small pictures with one thing to five things, words and relations.

Everything depends on the share of the time budget used so far, not on steps, so that a slower machine ends with a
shorter but complete curriculum and learning-rate decay.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mini_opsin.batches import Stage
from mini_opsin.canvas import Size

# Sizes of pictures: multiples of 16 up to 9,216 px, which is what the preprocessor makes of larger ones.
SMALL: list[Size] = [(48, 48), (64, 48), (64, 64), (48, 64), (80, 64), (64, 64)]
LARGE: list[Size] = [(96, 80), (96, 96), (80, 80), (112, 80), (80, 96), (64, 64)]
LARGE += [(96, 64), (112, 64), (80, 112), (128, 64), (64, 96), (80, 64)]
WIDE_SMALL: list[Size] = [(96, 32), (112, 32), (80, 32), (96, 48), (80, 48), (128, 32), (64, 48)]
WIDE: list[Size] = [(112, 48), (128, 48), (128, 64), (96, 48), (144, 48), (112, 64)]
WIDE += [(96, 64), (96, 80), (144, 64), (160, 48), (112, 32), (144, 32)]

# Question weights; tasks that a picture does not allow fall away by themselves.
EARLY: dict[str, float] = {
    "caption": 1.5,
    "shape": 2,
    "color": 2,
    "object": 2,
    "character": 3,
    "count": 1,
    "color_of": 2,
    "shape_of": 2,
    "where": 1.0,
    "exists": 1.5,
    "is_it": 1,
    "read": 2,
    "end_char": 1,
    "background": 0.5,
    "ink": 0.7,
    "side": 1.0,
}
LATE: dict[str, float] = {
    "caption": 2.0,
    "shape": 1.5,
    "color": 1.5,
    "object": 1.5,
    "character": 2,
    "count": 1.5,
    "count_of": 0.7,
    "color_of": 2,
    "shape_of": 1.6,
    "where": 1.2,
    "side": 1.0,
    "compare": 1.2,
    "beside": 1.2,
    "relation": 1.2,
    "exists": 2.0,
    "is_it": 1.2,
    "read": 3,
    "end_char": 0.7,
    "text_length": 0.7,
    "background": 0.5,
    "ink": 0.6,
    "json": 1.0,
    "json_held": 1.6,
}
# More of the weak tasks that still rise.
LAST = LATE | {"count": 3.5, "count_of": 1.2, "compare": 1.6, "relation": 0.8, "read": 5}
LAST |= {"side": 1.4, "beside": 1.4, "where": 1.5, "json": 2.5, "json_held": 4}

EARLY_END = 0.22  # until here most of the time goes into the vision tower
PAIRS_FROM = 0.24  # picture pairs come from here on


def _kinds(scenes: list[float], digit: float, letter: float, word: float, number: float) -> dict[str, float]:
    """Weights of the picture kinds; `scenes` are those of 1 to 5 things. The order is that of the random draws."""
    kinds = {f"scene{i}": weight for i, weight in enumerate(scenes, start=1) if weight}
    return kinds | {"scene0": 0.2, "digit": digit, "letter": letter, "word": word, "number": number, "clutter": 0.2}


@dataclass
class Plan:
    stage: Stage
    sizes: list[Size]
    pictures: int  # a batch on one rank
    asked: float  # share of the pictures that the decoder sees: the tower costs a third of the decoder's time
    aux: float  # weight of the auxiliary losses


def at(fraction: float) -> Stage:
    if fraction < EARLY_END:
        return Stage(_kinds([5, 3, 1.0], 2, 2.5, 1, 1), EARLY, 3, 14)
    if fraction < 0.42:
        kinds = _kinds([3, 4, 2, 0.7, 0.5], 1.2, 2, 2.5, 1.5)
        return Stage(kinds, EARLY if fraction < 0.27 else LATE, 4 if fraction < 0.32 else 5, 12)
    kinds = _kinds([2.5, 3.5, 2.2, 1.2, 1.0], 1.2, 1.5, 3.0, 1.5) | {"scene0": 0.25, "clutter": 0.25}
    return Stage(kinds, LATE if fraction < 0.76 else LAST, 6, 11)


def plan(fraction: float, rng: random.Random) -> Plan:
    text = rng.random() < (0.4 if fraction < 0.76 else 0.45)
    stage = at(fraction).leaning(text)
    # Small pictures first: they cost half as much, and what is learned on them carries over.
    small = rng.random() < (0.9 if fraction < 0.42 else 0.5 if fraction < 0.6 else 0.3)
    sizes = (WIDE_SMALL if small else WIDE) if text else (SMALL if small else LARGE)
    if fraction < EARLY_END:
        return Plan(stage, sizes, 64, 0.3, 1.5)
    return Plan(stage, sizes, 66, 0.62, 1.0 if fraction < 0.6 else 0.6)


def learning_rate(fraction: float, step: int) -> float:
    """Warm-up over 60 steps, flat to half the time, then linear to zero."""
    warm = min(1.0, (step + 1) / 60)
    return warm * min(1.0, max(0.0, (1 - fraction) / 0.5) + 0.002)


def exam() -> Stage:
    """The held-out pictures: every kind and task of the full range, whatever the training stage."""
    kinds = _kinds([3, 3, 2, 1, 1], 1.5, 1.5, 2.5, 1.5) | {"scene0": 0.3, "clutter": 0.3}
    return Stage(kinds, dict.fromkeys(LATE, 1.0), 6, 10)
