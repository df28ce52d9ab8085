"""Fields of a quantization_config: strangers write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import re2

from opsin_plugins.spec import SpecError


def whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number above 0, or -1."""
    found = config.get(name, default)
    if found is None and default is not None:
        found = default
    if not isinstance(found, int) or isinstance(found, bool) or (found != -1 and not 1 <= found <= 2**20):
        raise SpecError(f"quantization_config: {name} is {found!r:.60}")
    return found


def choice(config: Mapping[str, Any], name: str, known: Sequence[Any], default: Any = None) -> Any:
    found = config.get(name, default)
    found = default if found is None else found
    if found not in known or isinstance(found, bool):
        raise SpecError(
            f"quantization_config: {name} {found!r:.60} is not read; there is {' or '.join(map(str, known))}"
        )
    return found


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise SpecError(f"quantization_config: {name} is {found!r:.60}")
    return found


def pair(config: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Two numbers above 0."""
    found = config.get(name)
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(isinstance(n, int) and n > 0 for n in found):
        raise SpecError(f"quantization_config: {name} is {found!r:.60}")
    return found[0], found[1]


def matches(pattern: str, module: str) -> bool:
    """By a regular expression of a stranger, from the name's beginning on: RE2 takes no more than linear time."""
    try:
        return re2.match(pattern, module) is not None
    except re2.error:
        raise SpecError(f"quantization_config: the pattern {pattern!r:.80} cannot be read") from None


def texts(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = config.get(name) or ()
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise SpecError(f"quantization_config: {name} is {found!r:.60}")
    return tuple(found)
