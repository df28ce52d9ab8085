"""What of a schema can be held to, what is left out, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from opsin_server.errors import BadRequest
from opsin_server.guided.schema import holdable
from opsin_server.guided.schema_form import check_form

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


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": 5}, "'properties' is 5, and must be an object"),
        ({"properties": {"a": {"type": "zz"}}}, "'type' is 'zz'"),
        ({"properties": {"a": {"type": ["string", {}]}}}, "'type' is {}"),
        ({"$ref": "#/nope"}, "leads nowhere"),
        ({"items": {"anyOf": {}}}, "'anyOf' is {}, and must be a list"),
        ({"properties": {"a": 1}}, "a part of the schema is 1"),
        ({"required": [1]}, "list of names"),
        ({"enum": 4}, "'enum' is 4"),
    ],
)
def test_a_schema_that_is_none_is_told_from_one_that_cannot_be_held_to(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as caught:
        check_form(schema, "p")
    assert caught.value.param == "p"


def test_what_may_stand_in_a_schema_passes() -> None:
    node = {"type": ["object", "null"], "properties": {"next": {"$ref": "#/$defs/a~1b%20c"}, "type": True}}
    odd = {"items": [{}, {"$ref": "#/anyOf/0"}], "not": {}, "format": "zz", "x-own": 5, "required": [], "$anchor": "a"}
    check_form({"$defs": {"a/b c": node}, "anyOf": [node, odd, {"$ref": "#a"}, {"$ref": "https://x/y"}]}, "p")
