"""One sentence to whoever typed a command."""

from __future__ import annotations

from rich.console import Console


def say(sentence: str, style: str) -> None:
    """On standard error, apart from the answer, which may be piped; on one line, and with brackets as they are."""
    Console(stderr=True).print(sentence, style=style, highlight=False, soft_wrap=True, markup=False)
