"""A training file to a prepared folder: every row read, checked and encoded before anything is trained."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from opsin_plugins.spec import ImageBudget
from opsin_server.config import EngineConfig, image_limit
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.collect import Collected
from opsin_server.jobs.encode_row import ImageOrigin, RowEncoder, one_line
from opsin_server.jobs.examples import PreferencePair, examples_of
from opsin_server.jobs.image_sources import check_source
from opsin_server.jobs.image_store import ImageStore
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepared import (
    FACTS,
    FORMAT,
    IMAGES,
    MANIFEST,
    ROWS,
    Kind,
    Manifest,
    Prepared,
    Report,
    open_prepared,
)  # fmt: skip
from opsin_server.jobs.read_lines import Line, parse_row, read_lines
from opsin_server.jobs.row_file import RowWriter
from opsin_server.jobs.row_forms import read_example
from opsin_server.jobs.truncate import truncated
from opsin_server.media.connect import Network
from opsin_server.media.file_id import ReadFile
from opsin_server.media_limits import MediaLimits
from opsin_server.text.conversation import image_parts
from opsin_server.text.encode_prompt import PromptEncoder

Role = Literal["training", "validation", "calibration"]
USES: Mapping[Role, str] = {"training": "train on", "validation": "validate with", "calibration": "calibrate with"}

AHEAD = 4  # rows in work for each thread: enough to keep all busy behind a slow one, few enough for memory
SAME = "the two answers of a preference are the same: there is nothing to choose"
LEFT_OUT = "longer than max_seq_length, and left out"
MAX_AHEAD_BYTES = 256 * 2**20  # of their lines


class DataRefused(BadRequest):
    """A training file that cannot be trained on. report: all that was found."""

    code = "invalid_training_file"
    file = "training_file"

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message, param=self.file)
        self.report = report


class ValidationRefused(DataRefused):
    """A validation file that cannot be validated with."""

    code = "invalid_validation_file"
    file = "validation_file"


REFUSED: Mapping[Role, type[DataRefused]] = {
    "training": DataRefused,
    "validation": ValidationRefused,
    "calibration": DataRefused,
}


@dataclass(frozen=True)
class Source:
    """What a file is prepared with. version: of the model, a part of the digest. max_image_tokens: visual tokens of one
    image, as the server has them; None: as one that is told nothing. base: the folder in which paths to images may
    lie; None: rows may hold no paths. files: of a server, which rows may name by id; None: there are none. network: of
    the fetches. config: of a server, whose answers are waited for meanwhile: `prepare_process`. role: what it is
    for."""

    encoder: PromptEncoder
    options: DataOptions = field(default_factory=DataOptions)
    version: str = ""
    max_image_tokens: int | None = None
    media: MediaLimits = field(default_factory=MediaLimits)
    limits: DataLimits = field(default_factory=DataLimits)
    base: Path | None = None
    files: ReadFile | None = None
    network: Network | None = None
    threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    config: EngineConfig | None = None
    role: Role = "training"

    @property
    def image_tokens(self) -> int:
        return image_limit(self.max_image_tokens, self.encoder.spec.max_positions)


def prepare(file: Path, source: Source, out: Path, on_row: Callable[[int], None] | None = None) -> Prepared:
    """Reads the whole file and writes what it prepares to the folder `out`. What is there already from the same file,
    options and model is opened instead. on_row: told the number of each line that is done; what it raises ends the
    work. Raises DataRefused, and leaves nothing; BadRequest for more tokens a row than the model takes."""
    _check_length(source)
    digest, content = prepared_digest(file, source)
    known = open_prepared(out, source.encoder, source.media)
    if known is not None and known.digest == digest:
        return known
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with (out / ROWS).open("wb") as rows:
        collected = Collected(RowWriter(rows))
        _collect(file, source, out, collected, on_row or (lambda lines: None))
    report = collected.report()
    if why := refusal(report, source.options, source.role):
        shutil.rmtree(out, ignore_errors=report.unread_from is not None)  # (into which a row may still be written)
        raise REFUSED[source.role](why, report)
    with (out / FACTS).open("wb") as facts:
        np.savez(facts, **collected.facts()._asdict())
    manifest = Manifest(FORMAT, digest, content, source.version, source.options, report, collected.origins)
    part = out / f".{MANIFEST}"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    part.replace(out / MANIFEST)  # last: without it there is nothing to open
    made = open_prepared(out, source.encoder, source.media)
    assert made is not None
    return made


def _check_length(source: Source) -> None:
    wanted, most = source.options.max_seq_length, source.encoder.spec.max_positions
    if wanted is not None and wanted > most:
        raise BadRequest(f"max_seq_length is {wanted:,}, and the model takes {most:,} tokens", param="max_seq_length")


def prepared_digest(file: Path, source: Source) -> tuple[str, str]:
    """Of what would be prepared, and of the file's content, in hex."""
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    options = msgspec.to_builtins(source.options)
    about = [FORMAT, content, options, source.version, source.encoder.spec.family, source.image_tokens]
    return hashlib.sha256(msgspec.json.encode(about)).hexdigest(), content


def refusal(report: Report, options: DataOptions, role: Role = "training") -> str:
    """Why a file with this report is not used; empty: it is."""
    if report.fault_count and options.on_bad_row == "refuse":
        more = f" (and {report.fault_count - 1:,} more)" if report.fault_count > 1 else ""
        return f"the {role} file is refused: {report.faults[0]}{more}"
    whole_file = [fault for fault in report.faults if not fault.line]
    if whole_file:
        return f"the {role} file is refused: {whole_file[0]}"
    if report.rows < options.min_rows:
        lost = [f"{report.left_out:,} were too long"] * bool(report.left_out)
        lost += [f"{report.skipped:,} were wrong"] * bool(report.skipped)
        why = f" ({', '.join(lost)})" if lost else ""
        have = f"the {role} file has {report.rows:,} rows to {USES[role]}{why}"
        return f"{have}; at least {options.min_rows:,} are needed"
    return ""


@dataclass
class _Made:
    """A row, encoded."""

    kind: Kind
    rows: list[TrainingRow]
    origins: dict[bytes, ImageOrigin]
    remarks: set[str]


def _collect(file: Path, source: Source, out: Path, collected: Collected, on_row: Callable[[int], None]) -> None:
    store = ImageStore(
        out / IMAGES, source.media, source.limits.max_stored_bytes, source.base, source.network, source.files
    )
    encoder = RowEncoder(source.encoder, store, source.options, source.media)
    seconds = source.limits.max_seconds
    ends = None if seconds is None else time.monotonic() + seconds

    def make(line: Line) -> _Made:
        if line.data is None:
            raise BadRequest(f"the line has more than {source.limits.max_line_bytes:,} bytes")
        return _make(line.data, source, encoder)

    try:
        with closing(_in_order(read_lines(file, source.limits), make, source)) as made:
            for line, future in made:
                if ends is not None and not _done(future, ends):
                    collected.unread_from = line.number
                    break
                _take(line, future, source, collected)
                on_row(line.number)
                _check_count(collected, source.limits)
    except BadRequest as error:
        collected.faults.add(0, one_line(error))


def _done(future: Future[_Made], ends: float) -> bool:
    """Whether it is, before that time."""
    left = ends - time.monotonic()
    return left > 0 and bool(wait([future], left).done)


def _check_count(collected: Collected, limits: DataLimits) -> None:
    if collected.rows > limits.max_rows:
        raise BadRequest(f"the file has more than {limits.max_rows:,} rows")
    if collected.image_rows > limits.max_image_rows:
        raise BadRequest(f"the file has more than {limits.max_image_rows:,} rows with images")


def _in_order(
    lines: Iterator[Line], make: Callable[[Line], _Made], source: Source
) -> Generator[tuple[Line, Future[_Made]]]:
    """Lines and what is made of them, in their order, a bounded number in work."""
    waiting: deque[tuple[Line, Future[_Made]]] = deque()
    size = 0
    threads = source.threads
    pool = ThreadPoolExecutor(threads, thread_name_prefix="opsin-data")
    try:
        for line in lines:
            waiting.append((line, pool.submit(make, line)))
            size += len(line.data or b"")
            while len(waiting) > AHEAD * threads or (size > MAX_AHEAD_BYTES and waiting):
                size -= len(waiting[0][0].data or b"")
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=source.limits.max_seconds is None, cancel_futures=True)


def _make(data: bytes, source: Source, encoder: RowEncoder) -> _Made:
    budget = ImageBudget(source.options.images.max_pixels, source.image_tokens)
    example = read_example(parse_row(data, source.limits), budget, source.limits)
    for one in examples_of(example):
        for part in image_parts(one.messages):
            check_source(part, source.base)
    is_pair = isinstance(example, PreferencePair)
    encoded = [encoder.encode(one, answer_only=is_pair) for one in examples_of(example)]
    rows = [one.row for one in encoded]
    remarks = set().union(*(one.remarks for one in encoded))
    if is_pair and np.array_equal(rows[0].ids, rows[1].ids):
        remarks.add(SAME)
    origins = {digest: origin for one in encoded for digest, origin in one.origins.items()}
    return _Made("preference" if is_pair else "supervised", rows, origins, remarks)


def _take(line: Line, future: Future[_Made], source: Source, collected: Collected) -> None:
    try:
        made = future.result()
        collected.kind = collected.kind or made.kind
        if made.kind != collected.kind:
            raise BadRequest(f"the row is {_called(made.kind)}, and those before are {_called(collected.kind)}")
        rows = _fitted(made.rows, source, collected)
    except OpsinError as error:
        collected.faults.add(line.number, one_line(error))
        collected.skipped += 1
        return
    if rows is None:
        collected.left_out += 1
        collected.remarks.add(line.number, LEFT_OUT)
        return
    for remark in sorted(made.remarks):
        collected.remarks.add(line.number, remark)
    collected.add(line.number, rows, made.origins)


def _called(kind: Kind) -> str:
    return "a preference" if kind == "preference" else "a conversation"


def _fitted(rows: list[TrainingRow], source: Source, collected: Collected) -> list[TrainingRow] | None:
    """The rows, within the limit of tokens; None: they are left out. Raises BadRequest."""
    limit = source.options.max_seq_length or source.encoder.spec.max_positions
    longest = max(len(row.ids) for row in rows)
    if longest <= limit:
        return rows
    if source.options.on_long_row == "refuse":
        raise BadRequest(f"the row has {longest:,} tokens; the limit is {limit:,} (max_seq_length)")
    if source.options.on_long_row == "drop":
        return None
    cut = [truncated(row, limit) for row in rows]
    if not all(row.labels.any() for row in cut):
        return None
    collected.truncated += 1
    return cut
