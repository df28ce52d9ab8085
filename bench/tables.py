"""Tables that are read in a terminal and in markdown. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown whose columns also line up on a terminal."""
    cells = [[str(c) for c in row] for row in (titles, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(titles))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
