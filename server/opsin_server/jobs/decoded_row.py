"""A prepared row as text: runs of tokens that are learned or not, special or not, and the pictures between them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.text.tokenizer import Tokenizer

MOST = 4000  # characters of a run that is shown; the middle of what is longer is left out


class Run(NamedTuple):
    """special: of tokens that no typed text becomes. item: the number of the picture that stands here, which has no
    text; None: there is none."""

    text: str
    learned: bool
    special: bool = False
    item: int | None = None


def runs(row: TrainingRow, tokenizer: Tokenizer) -> Iterator[Run]:
    images = {span.start: span for span in row.spans}
    found: list[tuple[bytes, bool, bool, int | None]] = []
    at = 0
    while at < len(row.ids):
        if (span := images.get(at)) is not None:
            found.append((b"", False, False, span.item))
            at += span.length
        else:
            token = int(row.ids[at])
            is_special = token in tokenizer.marker_ids
            found.append((tokenizer.token_bytes(token), bool(row.labels[at]), is_special, None))
            at += 1
    for (learned, special, item), group in groupby(found, key=lambda run: run[1:]):
        yield Run(b"".join(data for data, *_ in group).decode("utf-8", "replace"), learned, special, item)


def shortened(text: str) -> str:
    if len(text) <= MOST:
        return text
    return f"{text[: MOST // 2]} ... ({len(text) - MOST:,} characters) ... {text[-MOST // 2 :]}"
