"""A prepared row as text, with what is learned set apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.text import Text

from opsin_client.visible import visible
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.jobs.decoded_row import runs, shortened
from opsin_server.text.tokenizer import Tokenizer

LEARNED = "bold green"
MARKS = ("[[", "]]")  # where there is no colour


def pieces(row: TrainingRow, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Runs of tokens as text, and whether they are learned; an image in words."""
    for (learned, item), group in groupby(runs(row, tokenizer), key=lambda run: (run.learned, run.item)):
        text = "".join(run.text for run in group)
        yield text if item is None else f"<image: {row.items[item].tokens} tokens>", learned


def shown(row: TrainingRow, tokenizer: Tokenizer, colour: bool) -> Text:
    text = Text()
    for piece, learned in pieces(row, tokenizer):
        said = visible(shortened(piece))
        if colour:
            text.append(said, LEARNED if learned else "")
        else:
            text.append(f"{MARKS[0]}{said}{MARKS[1]}" if learned else said)
    return text
