"""Schemas, patterns and grammars of strangers who mean harm, or know no better: 100 that must be refused in time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]


def nested(depth: int, keyword: str = "items") -> Fields:
    made: Fields = {"type": "string"}
    for _ in range(depth):
        made = {keyword: made}
    return made


def listed(depth: int, keyword: str) -> Fields:
    made: Fields = {"type": "string"}
    for _ in range(depth):
        made = {keyword: [made]}
    return made


def hostile() -> Iterator[tuple[str, Fields]]:
    """A name, and the fields of a chat request."""
    for name, schema in schemas():
        yield f"schema: {name}", {"guided_json": schema}
    for name, pattern in patterns():
        yield f"regex: {name}", {"guided_regex": pattern}
        yield f"pattern: {name}", {"guided_json": {"type": "string", "pattern": pattern}}
    for name, grammar in grammars():
        yield f"grammar: {name}", {"guided_grammar": grammar}


def schemas() -> Iterator[tuple[str, Fields]]:
    for depth in (65, 300):
        yield f"items {depth} deep", nested(depth)
        yield f"not {depth} deep", nested(depth, "not")
        yield f"allOf {depth} deep", listed(depth, "allOf")
        yield f"anyOf {depth} deep", listed(depth, "anyOf")
        yield f"prefixItems {depth} deep", listed(depth, "prefixItems")
    yield "itself", {"$ref": "#"}
    yield "a circle", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    yield "a part of itself", {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}
    yield "no such part", {"$ref": "#/$defs/nowhere"}
    yield "another's", {"$ref": "https://example.com/schema.json"}
    yield "a file", {"$ref": "file:///etc/passwd"}
    yield "no reference", {"$ref": 7}
    yield "items is a number", {"type": "array", "items": 7}
    yield "fewer than none", {"type": "array", "items": {}, "maxItems": -1}
    yield "more than there are", {"type": "array", "items": False, "minItems": 1}
    yield "too long a list of parts", {"type": "array", "prefixItems": {"type": "string"}}
    yield "a format that is a number", {"type": "string", "format": 7}
    yield "a pattern that is none", {"type": "string", "pattern": 7}
    yield "nothing", {"allOf": [{"type": "string"}, {"type": "integer"}]}
    yield "no choice", {"enum": []}
    yield "no number", {"type": "integer", "minimum": 5, "maximum": 4}
    yield "no string", {"type": "string", "minLength": 5, "maxLength": 4}
    yield "a type of its own", {"type": "circle"}
    yield "type is a number", {"type": 7}
    yield "properties is a list", {"type": "object", "properties": []}
    yield "required is a string", {"type": "object", "required": "a"}
    yield "a negative length", {"type": "string", "minLength": -1}
    yield "too many properties", {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}
    yield "too many choices", {"enum": [f"choice {i}" for i in range(20_000)]}
    yield "too long a name", {"properties": {"x" * 200_000: {}}}
    both = [{"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(6)]} for i in range(12)]
    yield "all of any", {"allOf": both}
    yield "one of many", {"oneOf": [{"type": "object", "properties": {f"a{i}": {}}} for i in range(300)]}
    several = [{"type": "string", "pattern": f"(.*[a-z]){{{i}}}.*[0-9]"} for i in range(2, 30)]
    yield "patterns at once", {"allOf": several}
    yield "a multiple", {"type": "integer", "multipleOf": 123456789, "minimum": 1, "maximum": 10**18}
    yield "a large number", {"type": "integer", "minimum": -(10**300), "maximum": 10**300}
    yield "options of the library", {"x-guidance": {"lenient": True}}
    yield "half a pair", {"const": "\ud800"}
    yield "what is not known", {"type": "object", "propertyNames": {"pattern": "^a"}, "unevaluatedProperties": False}
    yield "dependent", {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}


def patterns() -> Iterator[tuple[str, str]]:
    yield "looks ahead", "(?=a)b"
    yield "looks behind", "(?<!a)b"
    yield "a group again", r"(a)\1"
    yield "not closed", "(a"
    yield "not opened", "a)"
    yield "no class", "[z-a]"
    yield "nothing to repeat", "*a"
    yield "a range backwards", "a{5,2}"
    yield "too long", "a" * 140_000
    yield "groups in groups", "(" * 2000 + "a" + ")" * 2000
    yield "choices and stars", "(a|b*|(c?d*)*)*" * 500
    yield "options", "(a|b|c|d?)?" * 700
    yield "a class that is not closed", "[a-z"
    yield "half an escape", r"\x{zz}"
    yield "a flag that is none", "(?q)a"
    yield "stars", "(a*b*c*d*)*" * 700
    yield "maybes", "a?" * 2600 + "a" * 2600
    yield "half a pair", "\ud800+"
    yield "an unknown class", r"\p{Klingon}"
    yield "an escape at the end", "a\\"


def grammars() -> Iterator[tuple[str, str]]:
    yield "nothing", ""
    yield "no start", 'begin: "a"'
    yield "garbage", "\x00\xff%%%"
    yield "half a pair", 'start: "\ud800"'
    yield "a rule that is not there", "start: nowhere"
    yield "parentheses", "start: " + "(" * 2000 + '"a"' + ")" * 2000
    yield "too long", "start: " + '"a" ' * 20_000
    yield "a huge token", "start: /" + "(ab|cd)?" * 3500 + "/"
    yield "options of the library", '%llguidance {"no_forcing": false}\nstart: "a"'
    yield "a deep schema", f"start: %json {json.dumps(nested(200))}"
    yield "another grammar", "start: @elsewhere"
    yield "only itself", "start: start"
    yield "GBNF not closed", "root ::= (("
    yield "GBNF without a root", 'begin ::= "a"'
    yield "GBNF in circles", "root ::= a\na ::= b\nb ::= a"
    yield "GBNF repeated", 'root ::= ("a"{1000000}){1000000} nowhere'
