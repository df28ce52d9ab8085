"""The curve of a training run, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

LINES, MOST_COLUMNS = 12, 72
DOTS = "⣀⣤⣶⣿"


def plot(losses: Sequence[float], columns: int = MOST_COLUMNS) -> list[str]:
    """Lines of a curve, its largest and smallest value in front; each column is the mean of some steps. Nothing for
    fewer than two."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return []
    width = min(columns, len(finite))
    edges = [round(i * len(finite) / width) for i in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    levels = [round((mean - low) / (high - low or 1) * (LINES * len(DOTS) - 1)) for mean in means]
    found = []
    for line in reversed(range(LINES)):
        label = f"{high:8.4f}" if line == LINES - 1 else f"{low:8.4f}" if line == 0 else " " * 8
        cells = (min(len(DOTS), max(0, level + 1 - line * len(DOTS))) for level in levels)
        found.append(f"{label} │{''.join(DOTS[cell - 1] if cell else ' ' for cell in cells)}".rstrip())
    return found
