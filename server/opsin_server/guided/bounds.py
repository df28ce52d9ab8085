"""An end to what a schema leaves without one: strings of a format and numbers, in which a model that is unsure goes on
for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opsin_server.guided.formats import PATTERNS
from opsin_server.guided.schema import BOUNDS, COMPOSING, with_parts

LARGEST = 2**63 - 1024  # of 64 bits, the largest that is a float, too: as floats llguidance reads bounds
SMALLEST = 1e-9  # of what numbers are made up; with a smaller one some digits are lost to llguidance
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
OF_NUMBERS = (*BOUNDS, "multipleOf")


def bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same answers without endless ones: strings of a format by its patterns, integers of 64 bits, numbers of as
    many with nine digits behind the point and no exponent. What is listed stays (`enum`, `const`)."""
    parts = list(_parts(schema))
    # (llguidance seeks what is a multiple of two numbers within 32 bits, and errs beyond them.)
    multiples_may_meet = any("multipleOf" in part for part in parts) and any(map(_composes_number, parts))
    made = _bounded(schema, fractions=not multiples_may_meet)
    assert isinstance(made, dict)
    return made


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        inner: list[Any] = []
        with_parts(schema, inner.append)
        for part in inner:
            yield from _parts(part)


def _composes_number(part: Mapping[str, Any]) -> bool:
    return "allOf" in part or (_may_be_number(part) and any(name in part for name in COMPOSING))


def _bounded(schema: Any, fractions: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = with_parts(schema, lambda part: _bounded(part, fractions))
    if "enum" in made or "const" in made:
        return made
    others = made.get("allOf", [])
    if isinstance(made.get("format"), str) and made["format"] in PATTERNS and isinstance(others, list):
        made["allOf"] = [*others, *({"pattern": pattern} for pattern in PATTERNS[made.pop("format")])]
    return made | _number_bounds(made, fractions) if _may_be_number(made) else made


def _may_be_number(part: Mapping[str, Any]) -> bool:
    types = _types(part)
    return "number" in types or "integer" in types or (not types and any(name in part for name in OF_NUMBERS))


def _types(part: Mapping[str, Any]) -> list[Any]:
    types = part.get("type", [])
    return types if isinstance(types, list) else [types]


def _number_bounds(part: Mapping[str, Any], fractions: bool) -> dict[str, Any]:
    """Those that a part must have in addition."""
    lower, upper = _given(part, LOWER), _given(part, UPPER)
    made: dict[str, Any] = {}
    if not lower and all(value > -LARGEST for value in upper):
        made["minimum"] = -LARGEST
    if not upper and all(value < LARGEST for value in lower):
        made["maximum"] = LARGEST
    only_integers = "integer" in (types := _types(part)) and "number" not in types
    if fractions and not only_integers and "multipleOf" not in part:
        made["multipleOf"] = SMALLEST
    return made


def _given(part: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    """(As draft 4 has it, an exclusive bound is true or false.)"""
    return [
        part[name] for name in names if isinstance(part.get(name), int | float) and not isinstance(part[name], bool)
    ]
