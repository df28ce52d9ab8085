"""Thoughts in answers: found as templates mark them, and taken out however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from opsin_server.guided.check_worker import END, Bytes
from opsin_server.guided.grammar import behind_thoughts, json_grammar
from opsin_server.guided.limits import parser_limits
from opsin_server.text.reasoning import ReasoningFormat, ReasoningReader
from opsin_server.text.template import ChatTemplate
from support import tool_templates as templates

THINK = ReasoningFormat("<think>", "</think>")
SHOWS = """\
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' }}
{%- if turn.thinking is string -%}{{ '[THINK]\\n' + turn.thinking + '\\n[/THINK]\\n\\n' }}{%- endif -%}
{{ turn.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
DROPS = """\
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' + turn.content.split('</think>')[-1] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}
"""


@pytest.mark.parametrize(
    ("template", "found"),
    [(SHOWS, ReasoningFormat("[THINK]", "[/THINK]")), (DROPS, THINK), (templates.NONE, None), (templates.NEMO, None)],
)
def test_how_a_template_marks_thoughts_is_found(template: str, found: ReasoningFormat | None) -> None:
    assert ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}).reasoning == found


def read(pieces: list[str], inside: bool) -> tuple[str, str]:
    reader = ReasoningReader(THINK, inside)
    found = [*map(reader.push, pieces), reader.finish()]
    return "".join(piece.thoughts for piece in found), "".join(piece.text for piece in found)


@pytest.mark.parametrize(
    ("answer", "inside", "expected"),
    [
        ("<think>\nIt is a cat. </think>\n\nA cat.\n", False, ("It is a cat.", "A cat.\n")),
        ("\n<think>a < b </thin> c</think>d", False, ("a < b </thin> c", "d")),
        ("hm</think>\nyes", True, ("hm", "yes")),
        ("</think>yes", True, ("", "yes")),
        ("no thoughts <think>x</think>", False, ("", "no thoughts <think>x</think>")),
        ("<thinking is hard", False, ("", "<thinking is hard")),
        ("<think>never done", False, ("never done", "")),
        ("  yes", False, ("", "  yes")),
        ("", True, ("", "")),
    ],
)
def test_thoughts_are_taken_out_however_the_text_is_cut(answer: str, inside: bool, expected: tuple[str, str]) -> None:
    for pieces in ([answer], list(answer), [answer[i : i + 5] for i in range(0, len(answer), 5)]):
        assert read(pieces, inside) == expected


@given(st.text("<think/> \na", max_size=40), st.booleans())
def test_no_answer_is_too_strange(answer: str, inside: bool) -> None:
    thoughts, text = read(list(answer), inside)
    assert (thoughts, text) == read([answer], inside)
    assert len(thoughts) + len(text) <= len(answer)


def accepts(grammar: str, text: str) -> bool:
    encoder = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END], slices=[])
    matcher = LLMatcher(encoder, grammar, log_level=0, limits=parser_limits())
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_what_follows_thoughts_keeps_to_the_grammar() -> None:
    truth = json_grammar({"type": "boolean"}, "x").text
    fresh = behind_thoughts(truth, ["<think>"], ["</think>"], inside=False)
    assert accepts(fresh, "true")
    assert accepts(fresh, "<think>\nfalse, or is it?\n</think>\n\ntrue")
    assert not accepts(fresh, "<think>true")
    assert not accepts(fresh, "<think></think>maybe")
    begun = behind_thoughts(truth, ["<think>"], ["</think>"], inside=True)
    assert accepts(begun, "hm</think>false")
    assert not accepts(begun, "false")
    special = behind_thoughts(truth, [END], [END], inside=False)
    assert accepts(special, "false")
