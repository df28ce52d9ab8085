"""A bar for what takes its time, on a terminal; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

SHOWN_FROM = 2**20  # bytes: less is there before a bar is


class Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._progress.advance(self._task, len(chunk))


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Bar]:
    """On standard error, and gone at its end. total: bytes, None where they are not known."""
    console = Console(stderr=True)
    small = total is not None and total < SHOWN_FROM
    columns = (TextColumn(what, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=small or not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(what, total=total))
