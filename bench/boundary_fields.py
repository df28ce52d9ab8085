"""The numeric fields of requests, read from a server's own OpenAPI document, and what is tried at each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema

OPERATIONS = (
    "createChatCompletion",
    "createCompletion",
    "createResponse",
    "createMessage",
    "createEmbedding",
    "createFineTuningJob",
    "createFineTune",
    "createBatch",
    "createUpload",
    "detokenize",
)
ALWAYS = (
    "0", "-0.0", "2147483648", "9007199254740993", "9223372036854775808", "1e308", "5e-324", "NaN", "Infinity", '"5"',
    "true", "16.0", "16.5", "null",
)  # fmt: skip
ANY_KEY, KEY = "*", "5"  # of an object with keys that clients choose: the one that is tried


@dataclass(frozen=True, eq=False)
class Field:
    """path: names, and places in lists. schema: what the document says of its value; body: of the whole body."""

    operation: str
    route: str
    path: tuple[str | int, ...]
    schema: dict[str, Any]
    body: jsonschema.protocols.Validator

    @property
    def name(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{KEY if step == ANY_KEY else step}" for step in self.path)
        return "".join(steps).removeprefix(".")

    def allows(self, text: str, body: bytes) -> bool:
        """Whether the document lets this JSON text be the field's value in this body."""
        value = json.loads(text)
        is_number = not isinstance(value, float) or math.isfinite(value)
        return is_number and self.body.is_valid(json.loads(body))

    def values(self) -> list[str]:
        """JSON texts: around the bounds, and what is odd anywhere."""
        is_whole = self.schema.get("type") == "integer"
        low, high = self.schema.get("minimum"), self.schema.get("maximum")
        if low is None and "exclusiveMinimum" in self.schema:
            low = math.ulp(0.0)
        if high is None and "exclusiveMaximum" in self.schema:
            high = self.schema["exclusiveMaximum"] - 1
        around = [*(() if low is None else (low - 1, low)), *(() if high is None else (high, high + 1))]
        around += [value for value in self.schema.get("enum", ()) if value is not None]
        shown = [json.dumps(int(value) if is_whole else value) for value in around]
        return list(dict.fromkeys([*shown, *ALWAYS]))


def numeric_fields(document: dict[str, Any], operations: tuple[str, ...] = OPERATIONS) -> list[Field]:
    found = []
    for route, item in document["paths"].items():
        described = item.get("post", {})
        if described.get("operationId") in operations:
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            body = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
            name = described["operationId"]
            found += [Field(name, route, path, part, body) for path, part in _numbers(schema, (), document, ())]
    return found


def _numbers(
    schema: dict[str, Any], path: tuple[str | int, ...], document: dict[str, Any], inside: tuple[str, ...]
) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """inside: the schemas of which this one is a part."""
    if (name := schema.get("$ref", "").rpartition("/")[2]) and name not in inside:
        yield from _numbers(document["components"]["schemas"][name], path, document, (*inside, name))
    is_number = schema.get("type") in ("integer", "number") and "const" not in schema
    if is_number or any(type(v) in (int, float) for v in schema.get("enum", ())):
        yield path, schema
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _numbers(part, path, document, inside)
    for name, part in schema.get("properties", {}).items():
        yield from _numbers(part, (*path, name), document, inside)
    if isinstance(schema.get("items"), dict):
        yield from _numbers(schema["items"], (*path, 0), document, inside)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _numbers(schema["additionalProperties"], (*path, ANY_KEY), document, inside)
