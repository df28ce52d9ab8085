"""What a request wants of its answer, as a grammar in llguidance's form. Sizes are bounded here; whether it makes
sense, and at what cost, `check_process` finds out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from opsin_server.guided.bounds import bounded
from opsin_server.guided.limits import HEAD, MAX_GRAMMAR, MAX_REGEX, MAX_SCHEMA
from opsin_server.guided.schema import check_escape, escapes_next, holdable, wrong

# Blanks between the parts of JSON, as models write it: one, or a new line and its indentation. Without an end to them a
# model that is unsure writes blanks for ever.
WHITESPACE = r" |\n[ \t]{0,40}"
OPTIONS = "x-guidance"  # llguidance's own key in a schema


@dataclass(frozen=True)
class Grammar:
    """param: of the request, where it comes from. gbnf: in llama.cpp's form, which must still be translated. other: an
    answer may keep to this one instead. parts: of which it is made, each with a param of its own: where this one is
    wrong, the part at fault is named."""

    text: str
    param: str
    gbnf: bool = False
    other: str = ""
    parts: tuple[Grammar, ...] = ()


def json_grammar(
    schema: Mapping[str, Any], param: str, whitespace: str | None = WHITESPACE, parts: tuple[Grammar, ...] = ()
) -> Grammar:
    """An answer that is JSON of this schema. whitespace: a pattern of what may stand between its parts; None: nothing
    may. Raises BadRequest."""
    return Grammar(f"{HEAD}start: %json {schema_text(schema, param, whitespace)}", param, parts=parts)


def schema_text(schema: Mapping[str, Any], param: str, whitespace: str | None = WHITESPACE) -> str:
    """A schema as it stands in a grammar. Raises BadRequest."""
    if OPTIONS in schema:
        raise wrong(f"{OPTIONS!r} is not accepted in a schema", param)
    schema = bounded(holdable(schema, param))
    blanks = {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    text = json.dumps({**schema, OPTIONS: blanks}, ensure_ascii=False)
    _check_size(text, MAX_SCHEMA, "schema", param)
    return text


def regex_grammar(pattern: str, param: str) -> Grammar:
    """An answer that matches as a whole; "^" in front and "$" behind say so, and may be left out. Raises BadRequest."""
    _check_size(pattern, MAX_REGEX, "pattern", param)
    check_escape(pattern, param)
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not escapes_next(pattern[:-1]):
        pattern = pattern[:-1]
    if not pattern:
        raise wrong("the pattern is empty", param)
    return Grammar(f"{HEAD}start: TEXT\nTEXT: /{regex_to_lark(pattern)}/", param)


def choice_grammar(choices: Iterable[str], param: str) -> Grammar:
    """An answer that is one of these strings. Raises BadRequest."""
    texts = list(choices)
    _check_size("".join(texts), MAX_SCHEMA, "choices", param)
    if "" in texts:
        raise wrong("a choice must not be empty", param)
    # One token of the grammar: thousands of alternatives are as cheap as one.
    return Grammar(f"{HEAD}start: TEXT\nTEXT: /{'|'.join(map(literal, texts))}/", param)


def ebnf_grammar(text: str, param: str) -> Grammar:
    """Lark's form, or llama.cpp's GBNF, which writes "::=". Raises BadRequest."""
    _check_size(text, MAX_GRAMMAR, "grammar", param)
    if "%llguidance" in text:
        raise wrong("'%llguidance' is not accepted in a grammar", param)
    return Grammar(text, param, gbnf=True) if "::=" in text else Grammar(HEAD + text, param)


def either(first: str, second: str) -> str:
    """Answers of the one or the other."""
    outer = {"lark_grammar": f"{HEAD}start: @first | @second"}
    inner = [{"name": "first", "lark_grammar": first}, {"name": "second", "lark_grammar": second}]
    return json.dumps({"grammars": [outer, *inner]}, ensure_ascii=False)


def behind_thoughts(text: str, begin: Sequence[str | int], end: Sequence[str | int], inside: bool) -> str:
    """The same answers, and thoughts in front of them if there are any. begin, end: what stands around thoughts, as
    strings and the ids of special tokens. inside: they have begun."""
    first = "" if inside else terms(begin)
    rules = [f"start: {'thoughts' if inside else f'({first} thoughts)?'} @answer", "ANY: /(.|\\n)*/"]
    if isinstance(end[0], int):
        rules.append(f"thoughts: ANY {terms(end)} /[ \\n]{{0,4}}/")
    else:
        rules += ["thoughts: end /[ \\n]{0,4}/", f"end[lazy]: ANY {terms(end)}"]
    outer = {"lark_grammar": HEAD + "\n".join(rules)}
    return json.dumps({"grammars": [outer, {"name": "answer", "lark_grammar": text}]}, ensure_ascii=False)


def terms(parts: Iterable[str | int]) -> str:
    """Strings and special tokens as terminals of a rule."""
    return " ".join(f"<[{part}]>" if isinstance(part, int) else f"/{literal(part)}/" for part in parts)


def behind_blank(text: str) -> str:
    """The same answers, or a blank in front of them: of a vocabulary whose tokens bring it, and whose texts lose it."""
    outer = {"lark_grammar": f'{HEAD}start: " "? @answer'}
    return json.dumps({"grammars": [outer, {"name": "answer", "lark_grammar": text}]}, ensure_ascii=False)


def literal(text: str) -> str:
    """A pattern of exactly this text, also in a class of characters."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _check_size(text: str, limit: int, noun: str, param: str) -> None:
    if len(text) > limit:
        raise wrong(f"the {noun} has {len(text):,} characters; at most {limit:,} are accepted", param)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise wrong(f"the {noun} holds half of a surrogate pair", param) from None
