"""What an option may be, in the words of whoever writes JSON, TOML or a command."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
LENGTHS = {"min_length": "at least", "max_length": "at most"}


def described(hint: Any) -> str:
    """Of a field's type: "a whole number of at least 1", "one of cosine, linear or constant"."""
    kind, notes = inside(hint)
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"one of {', '.join(most)} or {last}" if most else last
    if get_origin(kind) is tuple:
        return "a list of texts"
    bounds = [f"{words} {value:,}" for note in notes for name, words in BOUNDS.items()
              if (value := getattr(note, name)) is not None]  # fmt: skip
    bounds += [f"{words} {value:,} characters" for note in notes for name, words in LENGTHS.items()
               if (value := getattr(note, name)) is not None]  # fmt: skip
    return KINDS.get(kind, "another value") + (f" of {' and '.join(bounds)}" if bounds else "")


def inside(hint: Any) -> tuple[Any, list[Meta]]:
    """The type behind annotations and None, and the annotations."""
    if get_origin(hint) is Annotated:
        kind, notes = inside(get_args(hint)[0])
        return kind, [*notes, *(note for note in hint.__metadata__ if isinstance(note, Meta))]
    if get_origin(hint) in (Union, UnionType):
        return inside(next(kind for kind in get_args(hint) if kind is not NoneType))
    return hint, []
