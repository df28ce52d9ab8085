"""Grammars of answers that call tools, in the form that the model's template writes calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opsin_server.guided.grammar import Grammar, json_grammar, literal, schema_text
from opsin_server.guided.limits import HEAD, MAX_SCHEMA
from opsin_server.guided.schema import wrong

MAX_CALLS = 16  # of one answer
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ANYTHING = "/(.|\\n)*/"

Split = Callable[[str], Sequence[str | int]]
"""A text as strings, and the ids of special tokens in between."""


@dataclass(frozen=True)
class CallWords:
    """What stands around calls, as of `text.tool_format.ToolFormat`. split: finds the special tokens in it. call_id:
    what stands for an id in it. pythonic: arguments are named in brackets."""

    begin: str
    middle: str
    between: str
    end: str
    opener: str
    call_id: str
    pythonic: bool
    split: Split

    def terms(self, text: str) -> str:
        """The text as terminals of a rule."""
        found = []
        for part in self.split(text):
            if isinstance(part, int):
                found.append(f"<[{part}]>")
                continue
            pieces = [f"/{literal(piece)}/" if piece else "" for piece in part.split(self.call_id)]
            found.append(" /[A-Za-z0-9]{9}/ ".join(pieces))
        return " ".join(found)


@dataclass(frozen=True)
class ToolFunction:
    """schema: of its arguments; None: it takes none. param: where the request has it."""

    name: str
    schema: Mapping[str, Any] | None
    param: str


def calls_grammar(words: CallWords, functions: Sequence[ToolFunction], parallel: bool) -> Grammar:
    """An answer that is nothing but calls: one, or some. Raises BadRequest."""
    rules = _rules(words, functions, parallel)
    start = f"start: {words.terms(words.begin)} calls"
    return Grammar(HEAD + "\n".join([start, *rules]), "tools", parts=_schemas(functions))


def free_or_calls_grammar(words: CallWords, functions: Sequence[ToolFunction], parallel: bool) -> Grammar:
    """An answer that says what it likes, and may then call: from there on it keeps to schemas. Raises BadRequest."""
    rules, begin = _rules(words, functions, parallel), words.begin
    if not words.opener:
        first = literal(begin.lstrip()[:1])
        start = [f"start: {words.terms(begin)} calls | FREE", f"FREE: /([^{first}](.|\\n)*)?/"]
    else:
        behind = words.terms(begin.partition(words.opener)[2])
        opener = words.split(words.opener)
        if len(opener) == 1 and isinstance(opener[0], int):
            start = [f"start: text | text <[{opener[0]}]> {behind} calls", "text: TEXT", f"TEXT: {ANYTHING}"]
        else:
            trigger = f"trigger[lazy]: TEXT {words.terms(words.opener)}"
            start = [f"start: text | trigger {behind} calls", "text: TEXT", trigger, f"TEXT: {ANYTHING}"]
    return Grammar(HEAD + "\n".join([*start, *rules]), "tools", parts=_schemas(functions))


def either_grammar(first: Grammar, second: Grammar) -> Grammar:
    """An answer that keeps to one of two."""
    return replace(second, other=first.text, parts=(*first.parts, *second.parts))


def _schemas(functions: Sequence[ToolFunction]) -> tuple[Grammar, ...]:
    return tuple(json_grammar(function.schema or NOTHING, function.param) for function in functions)


def _rules(words: CallWords, functions: Sequence[ToolFunction], parallel: bool) -> list[str]:
    """Of `calls`, from the first one's name on."""
    several = f"({words.terms(words.between)} call){{0,{MAX_CALLS - 1}}}" if parallel and words.between else ""
    names = " | ".join(f"call_{number}" for number in range(len(functions)))
    rules = [f"calls: call {several} {words.terms(words.end)}", f"call: {names}"]
    middle = words.terms(words.middle)
    for number, function in enumerate(functions):
        arguments = f"arguments_{number}"
        rules.append(f"call_{number}: /{literal(function.name)}/ {middle} {arguments}")
        rules += (_pythonic if words.pythonic else _json)(arguments, function)
    if sum(map(len, rules)) > MAX_SCHEMA:
        raise wrong(f"the schemas of all tools have more than {MAX_SCHEMA:,} characters", "tools")
    return rules


def _json(rule: str, function: ToolFunction) -> list[str]:
    return [f"{rule}: %json {schema_text(function.schema or NOTHING, function.param)}"]


def _pythonic(rule: str, function: ToolFunction) -> list[str]:
    """Named arguments, in the order of the schema's properties, with values as JSON."""
    schema = function.schema or NOTHING
    schema_text(schema, function.param)
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules = [f"{rule}: {rule}_0_first"]
    for number, (name, value) in enumerate(properties.items()):
        rules.append(f"{rule}_{number}: %json {schema_text({**shared, **value}, function.param)}")
        following = f"/{literal(name)}=/ {rule}_{number} {rule}_{number + 1}_next"
        for place, comma in (("first", ""), ("next", "/, /")):
            skipped = "" if name in required else f" | {rule}_{number + 1}_{place}"
            rules.append(f"{rule}_{number}_{place}: {comma} {following}{skipped}")
    rules += [f'{rule}_{len(properties)}_{place}: ""' for place in ("first", "next")]
    return rules
