"""A training run as a terminal shows it: a bar while it goes on, and its losses as a plot at the end."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, Notice, StepDone, TrainingEvent

SMOOTH = 0.1  # of the newest loss, in what the bar shows


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
