"""One sentence to whoever typed a command, and what the command prints."""

from __future__ import annotations

import sys

from rich.console import Console


def say(sentence: str, style: str) -> None:
    """On standard error, apart from the answer, which may be piped; on one line, and with brackets as they are."""
    Console(stderr=True).print(sentence, style=style, highlight=False, soft_wrap=True, markup=False)


def print_line(line: str) -> None:
    """On standard output, as it is."""
    sys.stdout.write(f"{line}\n")
