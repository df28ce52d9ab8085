"""Finds the strings of added tokens in text, and takes texts out of a conversation while it is rendered."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable


class Hidden:
    """Texts that a template must not see: a sentinel stands for each, and is found again in what was rendered.

    A sentinel is random, so no text can hold it, and made of digits and private-use characters, so that filters for
    case and blanks leave it as it is.
    """

    def __init__(self) -> None:
        self._mark = ""
        self.texts: list[str] = []

    def hide(self, text: str) -> str:
        self._mark = self._mark or f"\ue002{secrets.randbelow(10**18):018d}:"
        self.texts.append(text)
        return f"{self._mark}{len(self.texts) - 1}\ue003"

    def split(self, rendered: str) -> tuple[list[str], list[int]] | None:
        """The text around the sentinels (one more than there are), and the numbers of the texts they stand for.

        None: the template has taken a sentinel apart.
        """
        if not self.texts:
            return [rendered], []
        first, *rest = rendered.split(self._mark)
        around, numbers = [first], []
        for piece in rest:
            number, end, text = piece.partition("\ue003")
            if not end or not number.isdecimal() or int(number) >= len(self.texts):
                return None
            numbers.append(int(number))
            around.append(text)
        return (around, numbers) if not any(self._mark[1:-1] in text for text in around) else None


def marker_pattern(strings: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of `strings` at each place. Shared beginnings are tried once: 16 KB in 14 us, not 19 ms."""
    return re.compile(_alternatives(set(strings)) or r"(?!)")


def _alternatives(strings: set[str]) -> str:
    tails: dict[str, set[str]] = {}
    for text in strings - {""}:
        tails.setdefault(text[0], set()).add(text[1:])
    ways = [re.escape(first) + _alternatives(rest) for first, rest in sorted(tails.items())]
    if not ways:
        return ""
    return f"(?:{'|'.join(ways)})" + ("?" if "" in strings else "")
