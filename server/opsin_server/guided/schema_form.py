"""Whether a JSON schema is one: what no reader of schemas could follow, whatever it supports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from opsin_server.guided.schema import LISTS, OF_SCHEMAS, ONE, wrong

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
INDEX = re.compile(r"[0-9]{1,9}")


def check_form(schema: Mapping[str, Any], param: str) -> None:
    """Raises BadRequest. (A stack: what is parsed may be deep.)"""
    open_: list[Any] = [schema]
    while open_:
        part = open_.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise wrong(f"a part of the schema is {_shown(part)}, and must be an object", param)
        _check_words(part, schema, param)
        for name in OF_SCHEMAS:
            if name in part:
                open_ += _of_kind(part, name, dict, "an object", param).values()
        for name in LISTS:
            if name in part:
                open_ += _of_kind(part, name, list, "a list", param)
        for name in ONE:
            if name in part:
                open_ += part[name] if name == "items" and isinstance(part[name], list) else [part[name]]


def _check_words(part: Mapping[str, Any], schema: Mapping[str, Any], param: str) -> None:
    if "type" in part:
        types = part["type"] if isinstance(part["type"], list) else [part["type"]]
        if odd := [one for one in types if one not in TYPES]:
            raise wrong(f"'type' is {_shown(odd[0])}, and may be {', '.join(TYPES)}", param)
    if "required" in part and not all(
        isinstance(one, str) for one in _of_kind(part, "required", list, "a list", param)
    ):
        raise wrong("'required' must be a list of names", param)
    if "enum" in part:
        _of_kind(part, "enum", list, "a list", param)
    if "$ref" in part:
        pointer = _of_kind(part, "$ref", str, "a string", param)
        if pointer.startswith("#/") and not _leads_to_a_part(pointer[2:], schema):
            raise wrong(f"'$ref' is {_shown(pointer)}, and leads nowhere", param)


def _of_kind(part: Mapping[str, Any], name: str, kind: type, words: str, param: str) -> Any:
    if not isinstance(part[name], kind):
        raise wrong(f"'{name}' is {_shown(part[name])}, and must be {words}", param)
    return part[name]


def _leads_to_a_part(pointer: str, schema: Any) -> bool:
    for step in unquote(pointer).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, dict) and name in schema:
            schema = schema[name]
        elif isinstance(schema, list) and INDEX.fullmatch(name) and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            return False
    return isinstance(schema, dict | bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
