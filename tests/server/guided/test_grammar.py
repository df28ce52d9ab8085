"""What requests say becomes grammars of which llguidance accepts the texts that are meant, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from opsin_server.errors import BadRequest
from opsin_server.guided.check_messages import Asked
from opsin_server.guided.check_worker import END, Bytes, found_in
from opsin_server.guided.grammar import (
    Grammar,
    behind_blank,
    choice_grammar,
    ebnf_grammar,
    json_grammar,
    regex_grammar,
)
from opsin_server.guided.limits import parser_limits

TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END], slices=[])


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0, limits=parser_limits())
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def made(grammar: Grammar) -> str:
    found = found_in(Asked(grammar.text, grammar.gbnf, grammar.other), TOKENIZER)
    assert not found.fault, found.fault
    return found.text


SHAPE = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (SHAPE, {"a": 1}),
        (SHAPE, {"a": -3, "b": 'ü "quoted" \n'}),
        (SHAPE | {"additionalProperties": True}, {"a": 1, "c": [None, 1.5e3]}),
        ({}, [1, {"x": None}]),
        ({"type": "object"}, {}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
    ],
)
def test_json_is_written_in_every_usual_way(schema: dict[str, Any], value: Any) -> None:
    grammar = made(json_grammar(schema, "p"))
    for form in ({}, {"indent": 2}, {"indent": 4}, {"separators": (",", ":")}):
        assert accepts(grammar, json.dumps(value, ensure_ascii=False, **form)), form
    assert not accepts(grammar, json.dumps(value) + "x")
    assert not accepts(made(json_grammar({"type": "number"}, "p")), json.dumps(value))


def test_blanks_between_parts_have_an_end() -> None:
    grammar = made(json_grammar(SHAPE, "p"))
    assert not accepts(grammar, '{"a":  1}')
    assert not accepts(grammar, '{\n\n"a": 1}')
    compact = made(json_grammar(SHAPE, "p", None))
    assert accepts(compact, '{"a":1}')
    assert not accepts(compact, '{"a": 1}')
    assert accepts(made(json_grammar(SHAPE, "p", "__")), '{__"a"__:1}')


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d{3}", ["123"], ["12", "1234", "a12"]),
        (r"^\d+$", ["1"], ["", "1\n", "^1$"]),
        (r"a\$", ["a$"], ["a"]),
        (r"a\\$", ["a\\"], ["a\\$", "a"]),
        ("a/b", ["a/b"], ["a"]),
        (r"a\/b", ["a/b"], ["a"]),
        ("(yes|no) ?!", ["yes!", "no !"], ["yes"]),
        ("[ä-ü]+", ["öü"], ["a"]),
        (r'"\n"', ['"\n"'], ['"n"']),
        ("(?i)ab", ["aB", "AB"], ["a"]),
    ],
)
def test_a_pattern_is_of_the_whole_answer(pattern: str, yes: list[str], no: list[str]) -> None:
    grammar = made(regex_grammar(pattern, "p"))
    assert all(accepts(grammar, text) for text in yes)
    assert not any(accepts(grammar, text) for text in no)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_choice_is_one_of_these_texts_whatever_they_hold(choices: list[str]) -> None:
    grammar = choice_grammar(choices, "p").text
    assert all(accepts(grammar, text) for text in choices)
    assert not any(accepts(grammar, text + "~") for text in choices if text + "~" not in choices)


@pytest.mark.parametrize(
    "grammar",
    ['start: "a" B\nB: /[0-9]+/', 'root ::= "a" b\nb ::= [0-9]+', "start: /a[0-9]/ /[0-9]*/"],
)
def test_both_forms_of_grammars(grammar: str) -> None:
    text = made(ebnf_grammar(grammar, "p"))
    assert accepts(text, "a12")
    assert not accepts(text, "a")
    assert "no_forcing" in text
    assert text.count("%llguidance") == 1


def test_a_blank_in_front_that_the_text_loses() -> None:
    for grammar in (
        choice_grammar(["yes"], "p"),
        json_grammar({"type": "boolean"}, "p"),
        ebnf_grammar('start: "x"', "p"),
    ):
        text = "true" if "json" in grammar.text else "yes" if "yes" in grammar.text.replace("\\x", "") else "x"
        both = behind_blank(grammar.text)
        assert accepts(both, text)
        assert accepts(both, f" {text}")
        assert not accepts(both, f"  {text}")


@pytest.mark.parametrize("wrong", ["", "^", "$", "^$"])
def test_an_empty_pattern_is_refused(wrong: str) -> None:
    with pytest.raises(BadRequest, match="empty"):
        regex_grammar(wrong, "p")


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(BadRequest, match="empty"):
        choice_grammar(["a", ""], "p")
