"""What of a JSON schema can be held to: what cannot is refused, what only describes is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opsin_server.errors import BadRequest
from opsin_server.guided.formats import PATTERNS
from opsin_server.guided.limits import MAX_DEPTH

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
LARGEST = 2**63 - 1
DIALECTS = (
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (3, 4, 6, 7)),
    *(f"https://json-schema.org/draft/{date}/schema" for date in ("2019-09", "2020-12")),
)
OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # a schema a name
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
ONE = ("items", "additionalItems", "additionalProperties")
COMPOSING = ("$ref", "anyOf", "oneOf", "allOf")


def wrong(why: str, param: str) -> BadRequest:
    """In the words of a request's other fields."""
    return BadRequest(f"Invalid value for '{param}': {why}", param=param, code="invalid_value")


def holdable(schema: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The same answers, or some of them: where an object lists its properties and does not say that it may have others,
    it has no others, or a model could go on with them for ever. Raises BadRequest."""
    check_parts(schema, param)
    return _part(schema, param, closes=not _composes(schema))


def check_parts(schema: object, param: str) -> None:
    """What no part may hold. (A stack: what is too deep for a recursion is what this is about.)"""
    open_: list[tuple[object, int]] = [(schema, 1)]
    while open_:
        value, depth = open_.pop()
        if depth > MAX_DEPTH:
            raise wrong(f"the schema is nested more than {MAX_DEPTH} deep", param)
        if isinstance(value, dict) and isinstance(pattern := value.get("pattern"), str):
            check_escape(pattern, param)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for part in inner:
            if isinstance(part, dict | list):
                open_.append((part, depth + 1))
            elif isinstance(part, int) and abs(part) > LARGEST:
                raise wrong(f"{str(part)[:40]} is larger than 64 bits, which cannot be held to", param)


def check_escape(pattern: str, param: str) -> None:
    """(It would escape what llguidance puts behind a pattern.)"""
    if escapes_next(pattern):
        raise wrong("a pattern ends with a backslash that escapes nothing", param)


def escapes_next(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _composes(schema: object) -> bool:
    """Whether an object is described in several places, of which each would close it to what the others say."""
    if isinstance(schema, list):
        return any(map(_composes, schema))
    if not isinstance(schema, dict):
        return False
    if "allOf" in schema or ("properties" in schema and any(name in schema for name in COMPOSING)):
        return True
    return any(map(_composes, schema.values()))


def _part(schema: Any, param: str, closes: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    _check_dialect(schema, param)
    _check_numbers(schema, param)
    made = with_parts(schema, lambda part: _part(part, param, closes))
    if made.get("uniqueItems") is False:
        del made["uniqueItems"]
    if isinstance(made.get("format"), str) and made["format"] not in PATTERNS:  # it only describes
        del made["format"]
    open_ = not any(name in made for name in ("additionalProperties", "patternProperties", "unevaluatedProperties"))
    if closes and open_ and isinstance(made.get("properties"), dict) and made["properties"]:
        made["additionalProperties"] = False
    return made


def with_parts(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The same with what is made of each part that stands directly in it."""
    made = dict(schema)
    for name in OF_SCHEMAS:
        if isinstance(inner := made.get(name), Mapping):
            made[name] = {key: change(value) for key, value in inner.items()}
    for name in (*LISTS, *ONE):
        if name in made:
            inner = made[name]
            made[name] = [change(value) for value in inner] if isinstance(inner, list) else change(inner)
    return made


def _check_dialect(schema: Mapping[str, Any], param: str) -> None:
    name = schema.get("$schema", "")
    if isinstance(name, str) and name and name.removesuffix("#") not in DIALECTS:
        given = name if len(name) <= 80 else name[:77] + "..."
        raise wrong(f"'$schema' is {given!r}, and may be {', '.join(DIALECTS)} or be left out", param)


def _check_numbers(schema: Mapping[str, Any], param: str) -> None:
    given = [name for name in BOUNDS if isinstance(schema.get(name), int | float)]
    if schema.get("type") != "integer" and len(given) > 1 and any(name.startswith("exclusive") for name in given):
        names = " and ".join(f"'{name}'" for name in given)
        raise wrong(f"numbers between {names} cannot be held to; 'minimum' with 'maximum' can, and integers", param)
    least = schema.get("minProperties")
    required = schema.get("required")
    if isinstance(least, int) and least > (len(required) if isinstance(required, list) else 0):
        raise wrong("'minProperties' beyond the required ones cannot be held to", param)
