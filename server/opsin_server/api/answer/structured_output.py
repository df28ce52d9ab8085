"""Which grammar a request holds its answer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin_server.api.schemas.sampling_fields import SamplingFields
from opsin_server.api.schemas.structured_outputs import ResponseFormat, StructuredOutputs
from opsin_server.errors import BadRequest
from opsin_server.guided.grammar import (
    WHITESPACE,
    Grammar,
    choice_grammar,
    ebnf_grammar,
    json_grammar,
    regex_grammar,
)

ANY_OBJECT = {"type": "object"}


def grammar_of(body: SamplingFields) -> Grammar | None:
    """None: the answer is free. Raises BadRequest for more than one."""
    found = [*_of_format(body.response_format), *_of_vllm(body.structured_outputs), *_of_guided(body)]
    if len(found) > 1:
        params = " and ".join(f"'{grammar.param}'" for grammar in found)
        raise BadRequest(f"An answer can be held to one of these; the request has {params}", param=found[1].param)
    return found[0] if found else None


def _of_format(given: ResponseFormat | None) -> list[Grammar]:
    if given is None or given.type == "text":
        return []
    if given.json_schema is None:
        return [json_grammar(ANY_OBJECT, "response_format")]
    return [json_grammar(given.json_schema.schema_ or {}, "response_format.json_schema.schema")]


def _of_vllm(given: StructuredOutputs | None) -> list[Grammar]:
    if given is None:
        return []
    blanks = WHITESPACE if given.whitespace_pattern is None else given.whitespace_pattern
    whitespace = None if given.disable_any_whitespace else blanks
    parts = _blanks(given.whitespace_pattern, "structured_outputs.whitespace_pattern")
    found = _of_fields("structured_outputs.", whitespace, parts, given.json_, given.regex, given.choice, given.grammar)
    if given.json_object:
        found.append(json_grammar(ANY_OBJECT, "structured_outputs.json_object", whitespace, parts))
    if not found:
        names = "'json', 'json_object', 'regex', 'choice' or 'grammar'"
        raise BadRequest(f"'structured_outputs' needs {names}", param="structured_outputs")
    return found


def _of_guided(body: SamplingFields) -> list[Grammar]:
    given = body.guided_whitespace_pattern
    whitespace = WHITESPACE if given is None else given
    parts = _blanks(given, "guided_whitespace_pattern")
    return _of_fields(
        "guided_", whitespace, parts, body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar
    )


def _blanks(pattern: str | None, param: str) -> tuple[Grammar, ...]:
    return (regex_grammar(pattern, param),) if pattern else ()


def _of_fields(
    prefix: str,
    whitespace: str | None,
    parts: tuple[Grammar, ...],
    schema: Mapping[str, Any] | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Grammar]:
    found = []
    if schema is not None:
        found.append(json_grammar(schema, f"{prefix}json", whitespace, parts))
    if regex is not None:
        found.append(regex_grammar(regex, f"{prefix}regex"))
    if choice is not None:
        found.append(choice_grammar(choice, f"{prefix}choice"))
    if grammar is not None:
        found.append(ebnf_grammar(grammar, f"{prefix}grammar"))
    return found
