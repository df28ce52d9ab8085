"""What a model is run over to calibrate and to compare: rows of a training file, or the samples that come along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from opsin_plugins.spec import ModelSpec
from opsin_server.engine.training.micro_batch import MicroBatch, collate
from opsin_server.errors import BadRequest, ConfigError
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepare import Source, prepare
from opsin_server.jobs.prepared import Prepared
from opsin_server.jobs.read_lines import read_lines
from opsin_server.quantize.walk import PixelsOf
from opsin_server.served_name import readable
from opsin_server.text.encode_prompt import PromptEncoder

SAMPLES = Path(__file__).with_name("samples")
ROW_TOKENS = 8_192  # of one row: attention keeps scores for all pairs of them
BATCH_TOKENS = 2_048  # of rows that are run together
COMPARED_TOKENS = 8_192  # of all rows that are compared
HELD_OUT = 8  # one row of so many is compared, and not calibrated on


@dataclass(frozen=True)
class Limits:
    """rows: of a calibration file, that are read. tokens: of all of them."""

    rows: int = 128
    tokens: int = 32_768


class Data(msgspec.Struct, frozen=True):
    """Rows that were run, by the name of their file. tokens: visual ones too. answers: those that are compared."""

    name: str
    rows: int
    pictures: int
    tokens: int
    answers: int


@dataclass(frozen=True)
class Set:
    """Packed rows, and what they are."""

    batches: Sequence[MicroBatch]
    about: Data


@dataclass(frozen=True)
class Rows:
    """calibrated: None: nothing is. held_out: whether what is compared is something else."""

    calibrated: Set | None
    compared: Set
    held_out: bool
    pixels_of: PixelsOf


@contextmanager
def calibration_rows(
    file: Path, encoder: PromptEncoder, limits: Limits, on_row: Callable[[int], None]
) -> Iterator[Rows]:
    """Of the file's first rows as many as fit into the limits; some of them are held out, unless there are too few.
    Raises ConfigError, with the line that is wrong."""
    with _prepared([file], encoder, limits.rows, on_row) as prepared:
        rows = _bounded(_rows(prepared), limits.tokens)
        compared = rows[HELD_OUT - 1 :: HELD_OUT]
        calibrated = [row for number, row in enumerate(rows, 1) if not compared or number % HELD_OUT]
        yield Rows(
            _set(readable(file.name), calibrated, encoder.spec),
            _set(readable(file.name), _bounded(compared or rows, COMPARED_TOKENS), encoder.spec),
            bool(compared),
            prepared.pixels,
        )


@contextmanager
def sample_rows(encoder: PromptEncoder, on_row: Callable[[int], None]) -> Iterator[Rows]:
    """A few short texts, and drawings where the model takes pictures."""
    files = [SAMPLES / "texts.jsonl", *([SAMPLES / "pictures.jsonl"] if encoder.takes_images else [])]
    with compared_rows(files, "the samples of opsin", encoder, on_row) as rows:
        yield rows


@contextmanager
def compared_rows(
    files: Sequence[Path], name: str, encoder: PromptEncoder, on_row: Callable[[int], None]
) -> Iterator[Rows]:
    """All rows of the files, as far as there is room. Nothing is calibrated on them."""
    with _prepared(files, encoder, DataLimits().max_rows, on_row) as prepared:
        rows = _bounded(_rows(prepared), COMPARED_TOKENS)
        yield Rows(None, _set(name, rows, encoder.spec), True, prepared.pixels)


@contextmanager
def _prepared(
    files: Sequence[Path], encoder: PromptEncoder, count: int, on_row: Callable[[int], None]
) -> Iterator[Prepared]:
    """The first rows of all files, which have one folder. Paths to images are below it."""
    limits, most = DataLimits(), min(ROW_TOKENS, encoder.spec.max_positions)
    options = DataOptions(min_rows=1, on_long_row="refuse", max_seq_length=most)
    source = Source(encoder, options, limits=limits, base=files[0].absolute().parent, role="calibration")
    with TemporaryDirectory(prefix="opsin-quantize-") as folder:
        first = Path(folder) / "rows.jsonl"
        try:
            with first.open("wb") as written:
                for file in files:
                    _copy_lines(file, count, written.write, limits)
            made = prepare(first, source, Path(folder) / "prepared", on_row)
        except BadRequest as error:
            raise ConfigError(f"{files[0]}: {error.message}") from None
        with closing(made):
            yield made


def _copy_lines(file: Path, count: int, write: Callable[[bytes], object], limits: DataLimits) -> None:
    """The first rows, each on the line on which it stands."""
    at = 1
    for line in islice(read_lines(file, limits), count):
        if line.data is None:
            raise BadRequest(f"line {line.number}: the line has more than {limits.max_line_bytes:,} bytes")
        write(b"\n" * (line.number - at) + line.data + b"\n")
        at = line.number + 1


def _rows(prepared: Prepared) -> Iterator[TrainingRow]:
    """Of a preference the one that is preferred."""
    for number in range(len(prepared)):
        yield prepared.row(number) if prepared.kind == "supervised" else prepared.pair(number)[0]


def _bounded(rows: Iterable[TrainingRow], tokens: int) -> list[TrainingRow]:
    """The first ones, with no more tokens than that; one at least."""
    taken: list[TrainingRow] = []
    total = 0
    for row in rows:
        total += _size(row)
        if taken and total > tokens:
            break
        taken.append(row)
    return taken


def _size(row: TrainingRow) -> int:
    """Its tokens, or those of its pictures, where these lie beside it."""
    return max(len(row.ids), sum(item.tokens for item in row.items))


def _set(name: str, rows: Sequence[TrainingRow], spec: ModelSpec) -> Set:
    about = Data(
        name,
        len(rows),
        len({item.digest for row in rows for item in row.items}),
        sum(map(_size, rows)),
        sum(int(row.labels.sum()) for row in rows),
    )
    groups: list[list[TrainingRow]] = []
    room = 0
    for row in rows:
        if _size(row) > room:
            groups.append([])
            room = BATCH_TOKENS
        groups[-1].append(row)
        room -= _size(row)
    return Set([collate(group, spec, torch.device("cpu")) for group in groups], about)
