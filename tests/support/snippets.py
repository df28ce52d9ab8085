"""Code blocks of a document. A ```bash or ```python block directly followed by a ```text block prints that ("..."
stands for anything)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    line: int
    code: str
    prints: str | None

    def check(self, printed: str) -> None:
        if self.prints is not None:
            pattern = ".*".join(map(re.escape, self.prints.strip().split("...")))
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{printed!r}, not {self.prints!r}"


def blocks(document: Path) -> list[Block]:
    text = document.read_text("utf-8")
    found = list(FENCE.finditer(text))
    out = []
    for this, after in zip(found, [*found[1:], None], strict=True):
        follows = after is not None and after[1] == "text" and not text[this.end() : after.start()].strip()
        if this[1] in ("bash", "python"):
            line = text.count("\n", 0, this.start()) + 1
            out.append(Block(this[1], line, this[2], after[2] if follows else None))
    return out
