"""What is wrong with a training file, by line: the first few in words, all of them counted."""

from __future__ import annotations

from collections import Counter

import msgspec

SHOWN = 100  # faults that are kept in words
LONGEST = 1000  # characters of one


class Fault(msgspec.Struct, frozen=True):
    """line: counted from 1; 0: the file as a whole."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


class Faults:
    """Of one file."""

    def __init__(self, shown: int = SHOWN) -> None:
        self.first: list[Fault] = []
        self.count = 0
        self._shown = shown

    def add(self, line: int, message: str) -> None:
        self.count += 1
        if not line or len(self.first) < self._shown:  # (what is wrong with the whole is never left out)
            self.first.append(Fault(line, message[:LONGEST]))


class Remarks:
    """What is not wrong, and may surprise: how many rows each is true of, and the first one's line."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: dict[str, int] = {}

    def add(self, line: int, message: str) -> None:
        self.counts[message] += 1
        self.lines.setdefault(message, line)
