"""A vocabulary for tiny models, and schemas of many shapes that a model without sense can still finish."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema

from opsin_server.engine.engine import Engine
from opsin_server.guided.grammar import json_grammar

Schema = dict[str, Any]


class Vocabulary:
    """Single characters of ASCII, then pieces of several; the last token is the end."""

    def __init__(self, size: int) -> None:
        rng = random.Random(size)
        singles = [bytes([code]) for code in (10, *range(32, 127))]
        pieces = [b'"a', b'":', b'", "', b"{\n  ", b"true", b"null", b"12", b"}]", b'"}', "ü".encode()]
        pieces += [bytes([code]) for code in range(128, 256)]
        letters = b"abcdefghijklmnopqrstuvwxyz "
        while len(singles) + len(pieces) < size - 1:
            pieces.append(bytes(rng.choices(letters, k=rng.randint(2, 6))))
        self.tokens = [*(singles + pieces)[: size - 1], b"<end>"]
        self.end = size - 1

    def teach(self, engine: Engine) -> None:
        engine.grammars.learn(self.tokens, (self.end,), (self.end,))

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode()


LEAVES: list[Schema] = [
    {"type": "string", "maxLength": 6},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "^(abc|d.f)+?x$", "maxLength": 12},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": -5, "maximum": 1200},
    {"type": "integer", "exclusiveMinimum": 10, "maximum": 99, "multipleOf": 3},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "grün", 'a "quoted" one', 7, None, [1, 2]]},
    {"const": {"kind": "fixed"}},
    {"type": ["boolean", "null"]},
]


def schema(number: int) -> Schema:
    """Number 0, 1, ...: of another shape each."""
    rng = random.Random(number)
    kind = number % 5
    if kind == 3:
        return recursive(rng)
    if kind == 4:
        return defined(rng)
    return tree(rng, depth=1 + number % 3)


def tree(rng: random.Random, depth: int) -> Schema:
    if depth == 0:
        return dict(rng.choice(LEAVES))
    kind = rng.choice(("object", "object", "array", "tuple", "union"))
    inner = [tree(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    if kind == "object":
        names = [f"{rng.choice(('name', 'größe', 'a b'))}{i}" for i in range(len(inner))]
        required = [name for name in names if rng.random() < 0.7]
        return {
            "type": "object",
            "properties": dict(zip(names, inner, strict=True)),
            "required": required,
            "additionalProperties": False,
        }
    if kind == "array":
        least = rng.randint(0, 1)
        return {"type": "array", "items": inner[0], "minItems": least, "maxItems": least + 2}
    if kind == "tuple":
        count = len(inner)
        return {"type": "array", "prefixItems": inner, "items": False, "minItems": count, "maxItems": count}
    return {"anyOf": inner}


def recursive(rng: random.Random) -> Schema:
    """A list or a tree of itself."""
    node: Schema = {
        "type": "object",
        "properties": {"value": dict(rng.choice(LEAVES)), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    if rng.random() < 0.5:
        node["properties"]["next"] = {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1}
    return {"$defs": {"n": node}, "$ref": "#/$defs/n"}


def defined(rng: random.Random) -> Schema:
    """Parts by reference, and several that must hold at once."""
    return {
        "$defs": {"part": tree(rng, 1), "text": {"type": "string", "maxLength": 5}},
        "type": "object",
        "properties": {
            "part": {"$ref": "#/$defs/part"},
            "label": {"allOf": [{"$ref": "#/$defs/text"}, {"type": "string", "minLength": 1}]},
        },
        "required": ["part", "label"],
        "additionalProperties": False,
    }


def grammar(schema: Schema) -> str:
    return json_grammar(schema, "schema").text


def check(text: str, schema: Schema) -> None:
    """Raises where the text is no JSON of the schema."""
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
