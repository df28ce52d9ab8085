"""An old model's answers beside a new one's: what is right, what is alike, and how many of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

LONGEST = 20_000  # characters that are compared: the time grows with their square


@dataclass(frozen=True)
class Compared:
    """messages: the question. reference: the row's own answer. new, old: None where there was none. seen: whether the
    old model was trained on the row. why_not: of a request that the new server did not answer, what it said."""

    line: int
    messages: list[Any]
    reference: str
    old: str | None
    new: str | None
    seen: bool
    why_not: str = ""

    @property
    def old_right(self) -> bool:
        return self.old is not None and plain(self.old) == plain(self.reference)

    @property
    def new_right(self) -> bool:
        return self.new is not None and plain(self.new) == plain(self.reference)

    @property
    def same(self) -> bool:
        return self.old is not None and self.new is not None and plain(self.old) == plain(self.new)

    @property
    def alike(self) -> float:
        """0 to 1."""
        if self.old is None or self.new is None:
            return 0.0
        a, b = plain(self.old)[:LONGEST], plain(self.new)[:LONGEST]
        return 1.0 if a == b else SequenceMatcher(None, a, b, autojunk=False).ratio()


@dataclass(frozen=True)
class Totals:
    """not_answered: questions whose requests failed at the new server. All that follows is of the others."""

    questions: int
    not_answered: int
    old_right: int
    new_right: int
    same: int
    only_old: int
    only_new: int
    alike: float

    @classmethod
    def of(cls, found: Sequence[Compared]) -> Totals:
        answered = [one for one in found if one.new is not None]
        return cls(
            questions=len(found),
            not_answered=len(found) - len(answered),
            old_right=sum(one.old_right for one in answered),
            new_right=sum(one.new_right for one in answered),
            same=sum(one.same for one in answered),
            only_old=sum(one.old_right and not one.new_right for one in answered),
            only_new=sum(one.new_right and not one.old_right for one in answered),
            alike=sum(one.alike for one in answered) / len(answered) if answered else 0.0,
        )

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("questions", f"{self.questions:,}"),
            ("not answered", f"{self.not_answered:,}"),
            ("old is right", self._share(self.old_right)),
            ("new is right", self._share(self.new_right)),
            ("only old is right", self._share(self.only_old)),
            ("only new is right", self._share(self.only_new)),
            ("both say the same", self._share(self.same)),
            ("alike, on average", f"{self.alike:.0%}"),
        ]

    def _share(self, count: int) -> str:
        answered = self.questions - self.not_answered
        return f"{count:,} ({count / answered:.1%})" if answered else "0"


def plain(text: str) -> str:
    """Blanks do not count, nor does the case of letters."""
    return " ".join(text.split()).casefold()
