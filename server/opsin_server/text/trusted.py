"""Strings that know which of their characters a chat template wrote itself: only those may become special tokens.

What the template's source holds is a `Trusted`; what a conversation says is a plain `str`. Both are strings, so the
template sees real text and edits it as its author meant. A Trusted carries its `_trust`, a string of the same length,
"1" where a character is the template's own and "0" where it is text; joining, slicing and the operations of
`template_strings` carry it along. Any other operation gives a plain `str`: what is not known to be the template's own
is text. (This is taint tracking with the sides exchanged: forgetting costs a special token, and never makes one.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

OWN, TEXT = "1", "0"


class Trusted(str):
    """Made by `own` and by the operations below; nothing is trusted by accident."""

    __slots__ = ("_trust",)
    _trust: str

    def __new__(cls, text: str, trust: str) -> Trusted:
        made = str.__new__(cls, text)
        made._trust = trust
        return made

    def __str__(self) -> Trusted:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return marked(str.__getitem__(self, key), self._trust[key])

    def __iter__(self) -> Iterator[str]:
        return map(marked, str.__iter__(self), self._trust)

    def __add__(self, other: Any) -> Trusted:
        if type(other) is Trusted:
            return Trusted(str.__add__(self, other), self._trust + other._trust)
        if type(other) is str:
            return Trusted(str.__add__(self, other), self._trust + TEXT * len(other))
        return NotImplemented  # Markup has a say of its own

    def __radd__(self, other: Any) -> Trusted:
        if type(other) is str:
            return Trusted(str.__add__(other, self), TEXT * len(other) + self._trust)
        return NotImplemented

    def __mul__(self, times: SupportsIndex) -> Trusted:
        return Trusted(str.__mul__(self, times), self._trust * times)

    __rmul__ = __mul__


def own(text: str) -> Trusted:
    """What the template's source holds, or what this program says to it."""
    return Trusted(text, OWN * len(text))


def marked(text: str, trust: str) -> str:
    """A plain `str` where nothing is trusted: what is done to it later costs what it costs anywhere."""
    return Trusted(text, trust) if OWN in trust else text


def inherit(made: Any, *sources: Any) -> Any:
    """`made`, which is the template's own if it is a string made of nothing but numbers and the template's strings."""
    return own(made) if type(made) is str and all(map(_is_own, sources)) else made


def _is_own(value: Any) -> bool:
    if isinstance(value, str):
        return type(value) is Trusted and TEXT not in value._trust
    if isinstance(value, list | tuple):
        return all(map(_is_own, value))
    if isinstance(value, dict):
        return all(map(_is_own, value)) and all(map(_is_own, value.values()))
    return value is None or isinstance(value, int | float)


def trust_of(text: str) -> str:
    return text._trust if type(text) is Trusted else TEXT * len(text)


def joined(pieces: list[str], between: str = "") -> str:
    """`between.join(pieces)`; a plain `str` where nothing is trusted."""
    text = str.join(between, pieces)
    if type(between) is not Trusted and not any(type(piece) is Trusted for piece in pieces):
        return text
    return marked(text, trust_of(between).join(map(trust_of, pieces)))


def runs(text: str) -> tuple[list[str], list[str]]:
    """own[0] typed[0] own[1] ... own[n]: the template's own parts of `text`, and what conversations say in between."""
    if type(text) is not Trusted:
        return (["", ""], [text]) if text else ([""], [])
    plain, own, typed, at = str.__str__(text), [], [], 0
    for run in _TYPED.finditer(text._trust):
        own.append(plain[at : run.start()])
        typed.append(plain[run.start() : run.end()])
        at = run.end()
    own.append(plain[at:])
    return own, typed


_TYPED = re.compile(f"{TEXT}+")


def located(text: str, pieces: Iterable[str], skip: int | None = None) -> list[str]:
    """The pieces as slices of `text`, in which they stand in this order: `skip` characters apart, or blanks apart."""
    out, at = [], 0
    for piece in pieces:
        at = str.find(text, piece, at) if skip is None else at
        out.append(text[at : at + len(piece)])
        at += len(piece) + (skip or 0)
    return out
