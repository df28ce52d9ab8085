"""A prepared row as text, with what is learned set apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.text import Text

from opsin_client.visible import visible
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.text.tokenizer import Tokenizer

LEARNED = "bold green"
MARKS = ("[[", "]]")  # where there is no colour
MOST = 4000  # characters of a row; the middle of what is longer is left out


def pieces(row: TrainingRow, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Runs of tokens as text, and whether they are learned; an image in words."""
    images = {span.start: span for span in row.spans}
    runs: list[tuple[bytes, bool]] = []
    at = 0
    while at < len(row.ids):
        if (span := images.get(at)) is not None:
            runs.append((f"<image: {row.items[span.item].tokens} tokens>".encode(), False))
            at += span.length
        else:
            runs.append((tokenizer.token_bytes(int(row.ids[at])), bool(row.labels[at])))
            at += 1
    for learned, group in groupby(runs, key=lambda run: run[1]):
        yield b"".join(data for data, _ in group).decode("utf-8", "replace"), learned


def shown(row: TrainingRow, tokenizer: Tokenizer, colour: bool) -> Text:
    text = Text()
    for piece, learned in pieces(row, tokenizer):
        if len(piece) > MOST:
            piece = f"{piece[: MOST // 2]} ... ({len(piece) - MOST:,} characters) ... {piece[-MOST // 2 :]}"
        said = visible(piece)
        if colour:
            text.append(said, LEARNED if learned else "")
        else:
            text.append(f"{MARKS[0]}{said}{MARKS[1]}" if learned else said)
    return text
