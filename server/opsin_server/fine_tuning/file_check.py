"""A training file looked at before there is a job: its first lines, read as a job reads them, and what is learned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Literal

import msgspec

from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.decoded_row import runs, shortened
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.prepare import DataRefused, refusal
from opsin_server.jobs.prepared import Prepared, Report
from opsin_server.media.thumbnail import thumbnail
from opsin_server.text.tokenizer import Tokenizer

LIMITS = DataLimits(max_line_bytes=64 * 2**20, max_stored_bytes=2**30)
MOST_BYTES = LIMITS.max_line_bytes  # of the lines that are read
PICTURES = 64  # of a check, that are shown

Part = Literal["conversation", "preferred", "non_preferred"]


class ShownPicture(msgspec.Struct, frozen=True):
    """tokens: that it becomes. url: of a small copy; None: too many others are shown."""

    tokens: int
    url: str | None


class ShownRun(msgspec.Struct, frozen=True):
    """Tokens as text, all of them learned or none; or a picture."""

    text: str
    learned: bool
    picture: ShownPicture | None = None


class ShownRow(msgspec.Struct, frozen=True):
    """part: a preference is shown as two, with the same line."""

    line: int
    part: Part
    tokens: int
    learned: int
    runs: tuple[ShownRun, ...]


class FileCheck(msgspec.Struct, frozen=True):
    """lines: that were read, from the first on. complete: they are all of the file's. refusal: why a job would not
    train on it, as far as they say. rows: the first of those that are right."""

    file: str
    lines: int
    complete: bool
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
        """file: its id and digest. Whoever is cancelled leaves when the process has ended. Raises BadRequest."""
        async with self._turn:
            gone = threading.Event()
            work = asyncio.create_task(asyncio.to_thread(_checked, place, file, options, lines, rows, gone))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                gone.set()
                await asyncio.wait({work})
                work.exception()
                raise


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
        source = replace(place.source(options), options=lenient, limits=LIMITS)
        shown: tuple[ShownRow, ...] = ()
        try:
            made = place.prepare(folder / "lines", source, folder / "data", go_on)
        except DataRefused as refused:
            report = refused.report
        else:
            report = made.report
            shown = tuple(_shown(made, source.encoder.tokenizer, rows))
            made.close()
    asked = options.data if complete else msgspec.structs.replace(options.data, min_rows=1)
    return FileCheck(file[0], read, complete, refusal(report, asked) or None, report, shown)


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
        ShownRun(shortened(run.text), run.learned, None if run.item is None else picture(run.item))
        for run in runs(row, tokenizer)
    )
    return ShownRow(line, part, len(row.ids), int(row.labels.sum()), tuple(found))
