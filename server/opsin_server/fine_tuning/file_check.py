"""A training file looked at before there is a job: its first lines, read as a job reads them, and what is learned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Literal

import msgspec

from opsin_server.errors import Unavailable
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.decoded_row import runs, shortened
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.prepare import DataRefused, refusal
from opsin_server.jobs.prepared import Prepared, Report
from opsin_server.media.thumbnail import thumbnail
from opsin_server.text.tokenizer import Tokenizer

SECONDS = 60.0  # in which rows are read
WAIT_SECONDS = 60.0  # for other checks
LIMITS = DataLimits(max_line_bytes=64 * 2**20, max_stored_bytes=2**30, max_seconds=SECONDS)
THREADS = 8  # which wait for pictures, most of the time
MOST_BYTES = LIMITS.max_line_bytes  # of the lines that are read
PICTURES = 64  # of a check, that are shown

Part = Literal["conversation", "preferred", "non_preferred"]


class ShownPicture(msgspec.Struct, frozen=True):
    """tokens: that it becomes. url: of a small copy; None: too many others are shown."""

    tokens: int
    url: str | None


class ShownRun(msgspec.Struct, frozen=True):
    """Tokens as text, all of them learned or none; or a picture. special: of tokens that no typed text becomes, though
    it may look the same."""

    text: str
    learned: bool
    special: bool = False
    picture: ShownPicture | None = None


class ShownRow(msgspec.Struct, frozen=True):
    """part: a preference is shown as two, with the same line."""

    line: int
    part: Part
    tokens: int
    learned: int
    runs: tuple[ShownRun, ...]


class FileCheck(msgspec.Struct, frozen=True):
    """lines: that were read, from the first on. complete: they are all of the file's. timed_out: there was no
    time for more. refusal: why a job would not
    train on it, as far as they say. rows: the first of those that are right."""

    file: str
    lines: int
    complete: bool
    timed_out: bool
    refusal: str | None
    report: Report
    rows: tuple[ShownRow, ...]
    object: str = "file.check"


class FileChecks:
    """One at a time: each is a process of its own."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def check(
        self, place: Workplace, file: tuple[str, str], options: JobOptions, lines: int, rows: int
    ) -> FileCheck:
        """file: its id and digest. Whoever is cancelled leaves when the process has ended. Raises BadRequest, or
        Unavailable when others are checked for too long."""
        async with self._my_turn():
            gone = threading.Event()
            work = asyncio.create_task(asyncio.to_thread(_checked, place, file, options, lines, rows, gone))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                gone.set()
                await asyncio.wait({work})
                work.exception()
                raise

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._turn.acquire(), WAIT_SECONDS)
        except TimeoutError:
            raise Unavailable("Other files are being checked, one at a time: try again later") from None
        try:
            yield
        finally:
            self._turn.release()


class _Gone(Exception):
    """Nobody waits for it any more."""


def _checked(
    place: Workplace, file: tuple[str, str], options: JobOptions, lines: int, rows: int, gone: threading.Event
) -> FileCheck:
    def go_on(_: int) -> None:
        if gone.is_set():
            raise _Gone

    with TemporaryDirectory(dir=place.state.directory.tmp) as name:
        folder = Path(name)
        with place.state.blobs.open(place.tenant, file[1]) as opened, (folder / "lines").open("wb") as out:
            read, complete = _copy(opened, out, lines)
        # All good rows, whatever the policy for wrong ones is: the verdict is found afterwards.
        lenient = msgspec.structs.replace(options.data, on_bad_row="skip", min_rows=1)
        source = replace(place.source(options), options=lenient, limits=LIMITS, threads=THREADS)
        shown: tuple[ShownRow, ...] = ()
        try:
            made = place.prepare(folder / "lines", source, folder / "data", go_on)
        except DataRefused as refused:
            report = refused.report
        else:
            with closing(made):
                report = made.report
                shown = tuple(_shown(made, source.encoder.tokenizer, rows))
    timed_out = report.unread_from is not None
    if report.unread_from is not None:
        read, complete = report.unread_from - 1, False
    least = options.data.min_rows if complete else 0 if timed_out else 1
    asked = msgspec.structs.replace(options.data, min_rows=least)
    return FileCheck(file[0], read, complete, timed_out, refusal(report, asked) or None, report, shown)


def _copy(file: BinaryIO, out: BinaryIO, lines: int) -> tuple[int, bool]:
    """The first lines, as many as there may be; how many, and whether they are all."""
    left = MOST_BYTES
    for number in range(lines):
        line = file.readline(left + 2)
        if not line:
            return number, True
        if len(line) > left and number:
            return number, False
        out.write(line)  # (a first one that is longer than it may be is found to be so)
        left -= len(line)
        if left < 0:
            return 1, False
    return lines, not file.read(1)


def _shown(made: Prepared, tokenizer: Tokenizer, count: int) -> Iterator[ShownRow]:
    pictures: dict[bytes, str] = {}
    for index in range(min(count, len(made))):
        line = int(made.facts.line[index])
        if made.kind == "supervised":
            yield _row(line, "conversation", made.row(index), made, tokenizer, pictures)
        else:
            preferred, other = made.pair(index)
            yield _row(line, "preferred", preferred, made, tokenizer, pictures)
            yield _row(line, "non_preferred", other, made, tokenizer, pictures)


def _row(
    line: int, part: Part, row: TrainingRow, made: Prepared, tokenizer: Tokenizer, pictures: dict[bytes, str]
) -> ShownRow:
    """pictures: small copies by digest, each made once."""

    def picture(number: int) -> ShownPicture:
        item = row.items[number]
        if item.digest not in pictures and len(pictures) < PICTURES:
            pictures[item.digest] = thumbnail(made.picture(item.digest))
        return ShownPicture(item.tokens, pictures.get(item.digest))

    found = (
        ShownRun(shortened(run.text), run.learned, run.special, None if run.item is None else picture(run.item))
        for run in runs(row, tokenizer)
    )
    return ShownRow(line, part, len(row.ids), int(row.labels.sum()), tuple(found))
