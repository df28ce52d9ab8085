"""Calls as chat templates write them: their form is found, prompts are transformers', and what a template wrote is read
back and is what grammars demand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from transformers.utils.chat_template_utils import render_jinja_template

from opsin_server.guided.check_worker import END, Bytes
from opsin_server.guided.limits import parser_limits
from opsin_server.guided.tool_grammar import CallWords, ToolFunction, calls_grammar, free_or_calls_grammar
from opsin_server.text.conversation import Message, TextPart, ToolCall
from opsin_server.text.plain_text import with_short_ids
from opsin_server.text.spelled_tools import spelled_out
from opsin_server.text.template import ChatTemplate
from opsin_server.text.tool_format import CALL_ID, SPELLED, ToolFormat
from opsin_server.text.tool_reader import ToolCallReader
from support import tool_templates as templates

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {name: ChatTemplate(source, NAMES) for name, source in templates.READ.items()}
PARAMETERS = {
    "type": "object",
    "properties": {"at": {"type": "string"}, "times": {"type": "integer"}, "deep": {"type": "object"}},
    "required": ["at"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}
ENCODER = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END], slices=[])


def form_of(name: str) -> ToolFormat:
    form = TEMPLATES[name].tools.format
    assert form is not None
    return form


@pytest.mark.parametrize(
    ("name", "kind", "opener", "short_ids"),
    [
        ("hermes", "object", "<tool_call>", False),
        ("llama", "object", "", False),
        ("nemo", "object", "[TOOL_CALLS]", True),
        ("small", "named", "[TOOL_CALLS]", True),
        ("devstral", "named", "[TOOL_CALLS]", True),
        ("pythonic", "pythonic", "[", False),
    ],
)
def test_the_form_of_calls_is_found(name: str, kind: str, opener: str, short_ids: bool) -> None:
    assert TEMPLATES[name].tools.native
    form = form_of(name)
    assert (form.kind, form.opener, form.short_ids) == (kind, opener, short_ids)
    assert all(not text.startswith("</s>") and "7301" not in text for text in (form.begin, form.between, form.end))


def test_other_forms_and_none_are_told_apart() -> None:
    xml, none = (ChatTemplate(source, NAMES).tools for source in (templates.XML, templates.NONE))
    assert (xml.native, xml.format) == (True, None)
    assert (none.native, none.format) == (False, SPELLED)


def conversation(*calls: tuple[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Message]]:
    """As transformers takes it, and as this project does."""
    ids = [f"abcdef12{n}" for n in range(len(calls))]
    made = [
        {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
        for i, (n, a) in zip(ids, calls, strict=True)
    ]
    theirs: list[dict[str, Any]] = [{"role": "user", "content": "What is here?"}]
    theirs += [{"role": "assistant", "content": "", "tool_calls": made}]
    theirs += [{"role": "tool", "content": "a cat", "tool_call_id": i} for i in ids]
    ours = [
        Message("user", (TextPart("What is here?"),), is_string=True),
        Message(
            "assistant",
            (TextPart(""),),
            is_string=True,
            tool_calls=tuple(
                ToolCall(i, n, json.dumps(a, ensure_ascii=False)) for i, (n, a) in zip(ids, calls, strict=True)
            ),
        ),
        *(Message("tool", (TextPart("a cat"),), is_string=True, tool_call_id=i) for i in ids),
    ]
    return theirs, ours


@pytest.mark.parametrize("name", templates.READ)
def test_prompts_are_transformers(name: str) -> None:
    theirs, ours = conversation(("look", {"at": 'the "door"', "deep": {"a": [1, None, True]}}))
    for messages, mine in ((theirs, ours), (theirs[:1], ours[:1])):
        (expected,), _ = render_jinja_template(
            [messages], tools=[TOOL], chat_template=templates.READ[name], add_generation_prompt=True, **NAMES
        )
        assert TEMPLATES[name].render(mine, variables={"tools": [TOOL]}) == expected


def test_variables_of_the_template() -> None:
    user = [Message("user", (TextPart("x"),), is_string=True)]
    template = TEMPLATES["hermes"]
    assert template.render(user, variables={"enable_thinking": False}).endswith("</think>\n\n")
    assert template.render(user).endswith("<|im_start|>assistant\n")


def written(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the template writes of an assistant's turn with these calls."""
    messages = [with_short_ids(message) for message in conversation(*calls)[1]]
    form = form_of(name)
    text = str.__str__(TEMPLATES[name].render(messages, generation_prompt=False))
    start = text.index(form.begin.replace(CALL_ID, "abcdef120"))
    results = text.index("a cat", start)
    ends = ("</s>[TOOL_RESULTS]", "<|eot|>", "<|im_end|>", "</s>")
    return text[start : min(at for end in ends if 0 <= (at := text.find(end, start)) < results)]


ARGUMENTS = st.fixed_dictionaries(
    {"at": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)},
    optional={
        "times": st.integers(-50, 50),
        "deep": st.dictionaries(st.sampled_from("abc"), st.booleans(), max_size=2),
    },
).map(lambda found: {name: found[name] for name in PARAMETERS["properties"] if name in found})


@settings(max_examples=60)
@given(st.sampled_from(sorted(templates.READ)), st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_what_a_template_wrote_is_read_back_and_keeps_to_the_grammar(name: str, given_: list[dict[str, Any]]) -> None:
    calls = [("look", arguments) for arguments in (given_[:1] if name == "llama" else given_)]
    form, text = form_of(name), written(name, calls)
    reader = ToolCallReader(form, lambda: "x", ["look"])
    pieces = [*map(reader.push, text), reader.finish()]
    assert not "".join(piece.text for piece in pieces).strip()
    found: list[str] = []
    for delta in (delta for piece in pieces for delta in piece.calls):
        if delta.name is not None:
            assert delta.name == "look"
            found.append("")
        found[delta.index] += delta.arguments
    assert [json.loads(arguments) for arguments in found] == [arguments for _, arguments in calls]

    words = CallWords(
        form.begin, form.middle, form.between, form.end, form.opener, CALL_ID, form.kind == "pythonic", lambda x: [x]
    )
    functions = [ToolFunction("look", PARAMETERS, "tools"), ToolFunction("other", None, "tools")]
    for grammar in (calls_grammar(words, functions, True), free_or_calls_grammar(words, functions, True)):
        assert accepts(grammar.text, text)
    assert not accepts(calls_grammar(words, functions, True).text, "Hello!")
    assert accepts(free_or_calls_grammar(words, functions, True).text, "Hello!")
    assert not accepts(free_or_calls_grammar(words, functions, True).text, text.replace("look", "loop"))


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(ENCODER, grammar, log_level=0, limits=parser_limits())
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_tools_are_spelled_out_where_a_template_shows_none() -> None:
    messages = conversation(("look", {"at": "the door"}))[1]
    system = Message("system", (TextPart("Be brief."),), is_string=True)
    spelled = spelled_out([system, *messages], [json.dumps(TOOL)])
    assert [message.role for message in spelled] == ["system", "user", "assistant", "user"]
    texts = [part.text for message in spelled for part in message.parts if isinstance(part, TextPart)]
    assert texts[0].startswith("Be brief.\n\n")
    assert json.dumps(TOOL) in texts[0]
    assert texts[2] == '<tool_call>\n{"name": "look", "arguments": {"at": "the door"}}\n</tool_call>'
    assert texts[3] == "<tool_response>\na cat\n</tool_response>"
    assert not any(message.tool_calls or message.tool_call_id for message in spelled)
    assert spelled_out(messages, [json.dumps(TOOL)])[0].role == "system"
    reader = ToolCallReader(SPELLED, lambda: "x", ["look"])
    assert reader.push(texts[2]).calls[0].name == "look"
