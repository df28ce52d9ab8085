"""The files that a batch ends with: what its lines were answered, and what failed or was not run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from opsin_server.batches.answers import LineRequest, not_run
from opsin_server.errors import StorageFailed
from opsin_server.storage.records import Batch, NewFile
from opsin_server.storage.state import State

PURPOSE: Final = "batch_output"
ROWS = 500  # of results at a time
LIMIT = 2**50  # bytes: what was answered is kept, however much it is
REASONS: Final = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed before the batch was cancelled."),
    "failed": ("batch_failed", "This request was not executed before the batch failed."),
}


def output_file(batch: Batch, state: State) -> NewFile | None:
    """None: no line has an answer."""
    return _kept(batch, state, "output", _results(batch, state, failed=False))


def error_file(batch: Batch, state: State, status: str, left: Iterable[LineRequest]) -> NewFile | None:
    """status: with which the batch ends. left: requests that were not run. None: there are none, and none failed."""

    def lines() -> Iterator[str]:
        yield from _results(batch, state, failed=True)
        for request in left:
            yield not_run(request, *REASONS[status])

    return _kept(batch, state, "error", lines())


def _results(batch: Batch, state: State, *, failed: bool) -> Iterator[str]:
    last = 0
    while found := state.batches.results(batch, failed=failed, after=last, limit=ROWS):
        yield from (result.data for result in found)
        last = found[-1].line


def _kept(batch: Batch, state: State, kind: str, lines: Iterator[str]) -> NewFile | None:
    name = f"{batch.id}_{kind}.jsonl"
    path: Path = state.directory.tmp / name
    try:
        try:
            count = _write(path, lines)
        except OSError as error:
            raise StorageFailed(f"the files of a batch cannot be written: {error.strerror or error}") from error
        if not count:
            return None
        blob = state.blobs.put(batch.tenant, path, kind="file", name=name, limit=LIMIT)
    finally:
        path.unlink(missing_ok=True)
    return NewFile(blob, name, PURPOSE, batch.output_lasts)


def _write(path: Path, lines: Iterator[str]) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        return sum(bool(file.write(line + "\n")) for line in lines)
