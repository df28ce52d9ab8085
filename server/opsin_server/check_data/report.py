"""What was found in a training file, in lines for people or as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from opsin_client.visible import visible
from opsin_server.jobs.prepared import Report

BAR = 40  # characters of the longest
FAULTS = 20  # lines of them; --json has more


def report_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Titles and values, as `console.show` takes them."""
    what = "pairs to choose between" if report.kind == "preference" else "conversations"
    yield "rows", f"{report.rows:,} {what}, {report.image_rows:,} with images"
    uses = f"{report.image_uses:,} in all rows, {report.visual_tokens:,} visual tokens"
    yield "images", f"{report.images:,} different ones: {uses}" if report.images else "none"
    each = f", {report.tokens / report.rows:,.1f} a row, {report.longest:,} at most" if report.rows else ""
    yield "tokens", f"{report.tokens:,}{each}"
    share = f" ({report.labels / report.tokens:.1%})" if report.tokens else ""
    yield "learned", f"{report.labels:,} of them{share}"
    yield from histogram(report)
    for count, title in ((report.left_out, "left out"), (report.truncated, "truncated"), (report.skipped, "wrong")):
        if count:
            yield title, f"{count:,} rows"
    for remark in report.remarks:
        yield "remark", f"{remark.rows:,} rows, the first in line {remark.line}: {visible(remark.message)}"
    for fault in report.faults[:FAULTS]:
        yield "fault", visible(str(fault))
    if (more := report.fault_count - min(FAULTS, len(report.faults))) > 0:
        yield "", f"and {more:,} faults more"


def histogram(report: Report) -> Iterator[tuple[str, str]]:
    """How many rows have how many tokens."""
    most = max((count for _, count in report.lengths), default=0)
    for upper, count in report.lengths:
        bar = "#" * max(bool(count), round(BAR * count / most))
        yield "", f"to {upper:>7,} tokens {count:>9,} {bar}".rstrip()


def as_json(report: Report, refusal: str) -> str:
    document: dict[str, Any] = {"accepted": not refusal, "refusal": refusal or None, **msgspec.to_builtins(report)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
