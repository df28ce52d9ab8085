"""What of a schema can be held to, what is left out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from opsin_server.errors import BadRequest
from opsin_server.guided.schema import holdable

SHAPE = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "same"),
    [
        (SHAPE, SHAPE | {"additionalProperties": False}),
        ({"items": SHAPE}, {"items": SHAPE | {"additionalProperties": False}}),
        (
            {"$defs": {"s": SHAPE}, "$ref": "#/$defs/s"},
            {"$defs": {"s": SHAPE | {"additionalProperties": False}}, "$ref": "#/$defs/s"},
        ),
        (SHAPE | {"additionalProperties": True}, None),
        (SHAPE | {"patternProperties": {"^b": {}}}, None),
        ({"type": "object"}, None),
        ({"allOf": [SHAPE, {"properties": {"b": {}}}]}, None),
        (SHAPE | {"anyOf": [{"required": ["a"]}]}, None),
        (
            {"properties": {"properties": {"type": "string"}}},
            {"properties": {"properties": {"type": "string"}}, "additionalProperties": False},
        ),
        ({"const": {"properties": {"a": 1}}}, None),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "string", "format": "date"}, None),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, None),
        ({"type": "integer", "exclusiveMinimum": 1, "maximum": 5}, None),
        ({"type": "number", "exclusiveMinimum": 0}, None),
        ({"type": "object", "required": ["a"], "minProperties": 1}, None),
        ({"items": False, "prefixItems": [SHAPE | {"additionalProperties": False}]}, None),
    ],
)
def test_what_is_closed_and_what_is_left_out(schema: dict[str, Any], same: dict[str, Any] | None) -> None:
    before = repr(schema)
    assert holdable(schema, "p") == (schema if same is None else same)
    assert repr(schema) == before


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
            "'exclusiveMinimum' and 'exclusiveMaximum'",
        ),
        ({"items": {"minimum": -1.5, "exclusiveMaximum": -1}}, "'minimum' and 'exclusiveMaximum'"),
        ({"enum": [2**70]}, "64 bits"),
        ({"type": "integer", "minimum": -(2**70)}, "64 bits"),
        ({"type": "object", "minProperties": 2, "required": ["a"]}, "'minProperties'"),
        ({"type": "string", "pattern": "a\\"}, "backslash"),
        ({"items": {"$schema": "bogus"}}, "'$schema' is 'bogus', and may be http://json-schema.org/"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match="Invalid value for 'p': ") as caught:
        holdable(schema, "p")
    assert words in caught.value.message
