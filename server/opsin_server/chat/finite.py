"""Numbers that JSON does not have, which parsers read all the same: NaN, infinity, and what overflows to it."""

from __future__ import annotations

import math
from typing import Any

from opsin_server.chat.fields import NOT_FINITE, wrong

Location = tuple[int | str, ...]
STEPS = 8  # of a location, at most: deeper ones are within what it names


def check_finite(value: Any, param: str) -> None:
    """For a validator of a field whose string is JSON. Raises what `wrong` makes."""
    if place_of_nonfinite(value) is not None:
        raise wrong(NOT_FINITE, param)


def place_of_nonfinite(value: Any) -> Location | None:
    """Where such a number is; None where there is none. (A stack: what is parsed may be deep.)"""
    open_: list[tuple[Any, Location]] = [(value, ())]
    while open_:
        outer, place = open_.pop()
        pairs = outer.items() if isinstance(outer, dict) else enumerate(outer) if isinstance(outer, list) else ()
        for key, part in pairs:
            if isinstance(part, dict | list):
                open_.append((part, (*place, key)[:STEPS]))
            elif isinstance(part, int | float) and not _is_finite(part):
                return (*place, key)[:STEPS]
    return None


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # (a whole number, larger than any that others read)
        return False
