"""Bars for what takes its time, on a terminal; nothing but sentences where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from opsin_client.say import say
from opsin_client.visible import visible

Item = TypeVar("Item")


class Bars:
    """On standard error, gone at its end."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def over(self, what: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
        with self.task(what, total) as advance:
            for item in items:
                yield item
                advance()

    @contextmanager
    def task(self, what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Gives what is called when a part of it is done."""
        task = self._progress.add_task(what, total=total)
        yield lambda: self._progress.advance(task)
        self._progress.remove_task(task)

    def note(self, sentence: str) -> None:
        """What did not go as it should, and stops nothing."""
        if self._progress.disable:
            say(f"note: {visible(sentence)}", style="yellow")
        else:
            self._progress.console.print(f"note: {visible(sentence)}", style="yellow", markup=False, highlight=False)
