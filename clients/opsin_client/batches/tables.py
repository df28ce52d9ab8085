"""What `opsin batches` prints of batches."""

from __future__ import annotations

import time
from collections.abc import Iterable

from openai.types import Batch

from opsin_client.say import print_line
from opsin_client.table import show_table

NONE = "-"


def show_batches(batches: Iterable[Batch]) -> None:
    head = ("batch", "status", "model", "lines", "made", "output")
    rows = [
        (
            batch.id,
            batch.status,
            batch.model or NONE,
            _lines(batch),
            _when(batch.created_at),
            batch.output_file_id or NONE,
        )
        for batch in batches
    ]
    show_table(head, rows)


def show_batch(batch: Batch) -> None:
    usage = batch.usage
    ended = next((at for at in (batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at) if at), None)
    rows = [
        ("status", batch.status),
        ("model", batch.model or NONE),
        ("endpoint", batch.endpoint),
        ("input", batch.input_file_id),
        ("lines", _lines(batch)),
        ("tokens", NONE if usage is None else f"{usage.input_tokens:,} in, {usage.output_tokens:,} out"),
        ("made", _when(batch.created_at)),
        ("expires", NONE if batch.expires_at is None else _when(batch.expires_at)),
        ("ended", NONE if ended is None else _when(ended)),
        ("output", batch.output_file_id or NONE),
        ("errors", batch.error_file_id or NONE),
    ]
    for fault in (batch.errors.data or []) if batch.errors is not None else []:
        place = "file" if fault.line is None else f"line {fault.line}"
        rows.append((place, f"{fault.code}: {fault.message}"))
    print_line(batch.id)
    for name, value in rows:
        print_line(f"  {name:<14} {value}")


def _lines(batch: Batch) -> str:
    counts = batch.request_counts
    if counts is None or not counts.total:
        return NONE
    failed = f", {counts.failed:,} failed" if counts.failed else ""
    return f"{counts.completed:,} of {counts.total:,}{failed}"


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
