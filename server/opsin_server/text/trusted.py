"""Strings that know which of their characters a chat template wrote itself: only those may become special tokens.

What the template's source holds is a `Trusted`; what a conversation says is a plain `str`. Both are strings, so the
template sees real text and edits it as its author meant. A Trusted carries its `_trust`, a string of the same length,
"1" where a character is the template's own and "0" where it is text; joining, slicing and the operations of
`template_strings` carry it along. Any other operation gives a plain `str`: what is not known to be the template's own
is text. (This is taint tracking with the sides exchanged: forgetting costs a special token, and never makes one.)

For training, text carries a mark as well: `said_in` says which message a character came from. It is text all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

OWN, TEXT = "1", "0"
FIRST_MESSAGE = 0x100  # the mark of a conversation's first message, and behind it those of the others
MAX_MESSAGES = 0xD800 - FIRST_MESSAGE  # (surrogates cannot be encoded)


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


def said_in(text: str, message: int) -> Trusted:
    """Text of the conversation's message of this number, which a template's edits do not lose sight of."""
    return Trusted(text, chr(FIRST_MESSAGE + message) * len(text))


def marked(text: str, trust: str) -> str:
    """A plain `str` where nothing is marked: what is done to it later costs what it costs anywhere."""
    return Trusted(text, trust) if trust.strip(TEXT) else text


def inherit(made: Any, *sources: Any) -> Any:
    """`made`, which is the template's own if it is a string made of nothing but numbers and the template's strings."""
    return own(made) if type(made) is str and all(map(_is_own, sources)) else made


def _is_own(value: Any) -> bool:
    if isinstance(value, str):
        return is_own(value)
    if isinstance(value, list | tuple):
        return all(map(_is_own, value))
    if isinstance(value, dict):
        return all(map(_is_own, value)) and all(map(_is_own, value.values()))
    return value is None or isinstance(value, int | float)


def is_own(text: str) -> bool:
    """Whether the template wrote all of it."""
    return type(text) is Trusted and not text._trust.strip(OWN)


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


_TYPED = re.compile(f"[^{OWN}]+")


def located(text: str, pieces: Iterable[str], skip: int | None = None) -> list[str]:
    """The pieces as slices of `text`, in which they stand in this order: `skip` characters apart, or blanks apart."""
    out, at = [], 0
    for piece in pieces:
        at = str.find(text, piece, at) if skip is None else at
        out.append(text[at : at + len(piece)])
        at += len(piece) + (skip or 0)
    return out
