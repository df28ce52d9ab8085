"""A training run as a terminal shows it: a bar while it goes on, and its losses as a plot at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, Notice, StepDone, TrainingEvent

LINES, MOST_COLUMNS = 12, 72
SMOOTH = 0.1  # of the newest loss, in what the bar shows
DOTS = "⣀⣤⣶⣿"


class RunProgress:
    """Hears events; keeps what the report needs."""

    def __init__(self, console: Console, steps: int) -> None:
        self.done: list[StepDone] = []
        self.evaluated: list[Evaluated] = []
        self._console, self._loss = console, math.nan
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self.bar.add_task("training", total=steps)

    def hear(self, event: TrainingEvent) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Evaluated):
            self.evaluated.append(event)
            best = ", the best so far" if event.best else ""
            self._say(f"step {event.step:,}: validation loss {event.loss:.4f}, accuracy {event.accuracy:.1%}{best}")
        elif isinstance(event, CheckpointSaved):
            self._say(f"step {event.step:,}: checkpoint {event.folder}")
        elif isinstance(event, Notice):
            self._say(event.text)

    @property
    def rate(self) -> float:
        """Tokens a second over the whole run."""
        seconds = self.done[-1].seconds - self.done[0].seconds if len(self.done) > 1 else 0
        return sum(step.tokens for step in self.done[1:]) / seconds if seconds else 0.0

    def _step(self, event: StepDone) -> None:
        while self.done and self.done[-1].step >= event.step:  # made again after a death
            self.done.pop()
        self.done.append(event)
        self._loss = event.loss if math.isnan(self._loss) else self._loss + SMOOTH * (event.loss - self._loss)
        text = f"loss {self._loss:.4f}, accuracy {event.accuracy:.0%}, {self.rate:,.0f} tokens/s"
        self.bar.update(self._task, completed=event.step, description=text)
        if math.isnan(event.norm):
            self._say(f"step {event.step:,} changes nothing: its gradient was not finite")
        if not self._console.is_terminal and event.step % max(1, int(self.bar.tasks[0].total or 1) // 20) == 0:
            self._say(f"step {event.step:,}: {text}")

    def _say(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, soft_wrap=True, markup=False)


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
