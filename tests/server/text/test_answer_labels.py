"""Which tokens are learned: transformers' own masks where a template marks its answers, and otherwise what the labelled
tokens say."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opsin_server.errors import BadRequest
from opsin_server.text.answer_labels import INSIDE, NO_END, OTHER_HEAD
from opsin_server.text.conversation import Message, TextPart
from opsin_server.text.encode_prompt import Labelled, PromptEncoder
from opsin_server.text.plain_text import ConversationEncoder
from support.editing_templates import (
    CUTS,
    STRINGS,
    THINKS,
    THOUGHTS,
    TRIMS,
    WORDS,
    as_dicts,
    as_messages,
    conversations,
)

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
G, END = "{%- generation -%}", "{%- endgeneration -%}"
CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content + '<|im_end|>' }}{{ '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def marked(source: str, *marks: tuple[str, str]) -> tuple[str, str]:
    """A template, and the same with its answers marked for transformers."""
    tagged = source
    for old, new in marks:
        assert tagged.count(old) == 1
        tagged = tagged.replace(old, new)
    return source, tagged


def branch(content: str) -> str:
    return f"{{%- if m.role == 'assistant' -%}}{G}{content}{END}{{%- else -%}}{content}{{%- endif -%}}"


HEAD, THE_END, LINE = "{{ '<|im_start|>' ~ m.role ~ '\\n' }}", "{{- '<|im_end|>' }}", "{{ '\\n' }}"
ANSWER = "{{- ' ' ~ (said[0] | upper if said else '') ~ said[1:] ~ eos_token }}"
CUT_TURN = "<|im_start|>{{ m.role | upper }}: {{ turn(m) | trim }}<|im_end|>"
LAST = "\n{%- endif -%}\n{%- endfor"
MARKED = {
    "chatml": marked(CHATML, ("{{ m.content + '<|im_end|>' }}", branch("{{ m.content + '<|im_end|>' }}"))),
    "thinks": marked(
        THINKS,
        ("{{ '<|im_start|>' ~ m.role ~ '\\n<think>\\n' ~", HEAD + G + "{{ '<think>\\n' ~"),
        ("{{ '<|im_start|>' + m.role + '\\n' + said }}", HEAD + G + "{{ said }}"),
        ("~ said.lstrip('\\n') }}", "~ said.lstrip('\\n') }}" + THE_END + END + LINE),
        ("{%- endif -%}\n{{ '<|im_end|>\\n' }}" + LAST, THE_END + END + LINE + "{%- endif -%}" + LAST),
    ),
    "cuts": marked(CUTS, (CUT_TURN, branch(CUT_TURN))),
    "trims": marked(TRIMS, (ANSWER, G + ANSWER + END)),
}


def learned_turns(messages: list[Message]) -> list[bool]:
    return [message.role == "assistant" for message in messages]


@pytest.mark.parametrize("name", MARKED)
def test_labels_are_those_of_transformers(name: str, cases: dict[str, Any]) -> None:
    compare_with_transformers(name, cases, SETTINGS)


@pytest.mark.nightly
@pytest.mark.parametrize("name", MARKED)
def test_labels_are_those_of_transformers_for_long(name: str, cases: dict[str, Any]) -> None:
    compare_with_transformers(name, cases, settings(max_examples=1500, deadline=None))


def compare_with_transformers(name: str, cases: dict[str, Any], how: settings) -> None:
    plain, tagged = MARKED[name]
    case = cases["thinking"].with_template(plain)
    oracle, encoder = case.oracle, case.encoder
    seen: set[str] = set()

    @how
    @given(conversations(WORDS, THOUGHTS if name in ("thinks", "cuts") else []))
    def check(turns: list[tuple[str, str]]) -> None:
        answers = [text for role, text in turns if role == "assistant"]
        assume(answers)
        expected = oracle.apply_chat_template(
            as_dicts(turns), chat_template=tagged, return_dict=True, return_assistant_tokens_mask=True
        )
        messages = as_messages(turns)
        try:
            found = encoder.encode_labelled(messages, [], learned_turns(messages))
        except BadRequest as refused:
            assert "empty" in refused.message or "leaves out" in refused.message  # noqa: PT017
            assert any(not text.split("</think>")[-1].strip(" \n/") or not text.strip() for text in answers)
            seen.add("refused")
            return
        if (marks := {"<think>", "</think>"}) and found.prompt.ids.tolist() != expected["input_ids"]:
            assert any(mark in text for mark in marks for _, text in turns)  # (transformers makes tokens of them)
            return
        assert found.labels.tolist() == list(map(bool, expected["assistant_masks"]))
        seen.add("labelled")

    check()
    assert "labelled" in seen


@pytest.mark.parametrize("name", ["metaspace", "legacy", "unigram"])
def test_labels_of_sentencepiece(name: str, cases: dict[str, Any], encoders: dict[str, Any], tools: Any) -> None:
    """Those of transformers, and where a blank in front of an answer is a token of its own, that one: the model has to
    write it."""
    case, encoder = cases[name], encoders[name]
    oracle, rng, compared = case.oracle, random.Random(), 0
    for _ in range(40):
        messages = [m for m in tools.some_conversation(rng) if all(isinstance(p, TextPart) for p in m.parts)]
        if not any(m.role == "assistant" for m in messages):
            continue
        expected = oracle.apply_chat_template(
            tools.as_dicts(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        try:
            found = encoder.encode_labelled(messages, [], learned_turns(messages))
        except BadRequest as refused:
            assert "leaves out" not in refused.message  # noqa: PT017
            continue
        if found.prompt.ids.tolist() != expected["input_ids"]:
            continue
        compared += 1
        theirs = np.array(expected["assistant_masks"], bool)
        assert not (theirs & ~found.labels).any()
        for extra in np.flatnonzero(found.labels & ~theirs):
            assert encoder.tokenizer.token_bytes(int(found.prompt.ids[extra])).strip() == b""
            assert theirs[extra + 1]
    assert compared > 5


class Whole(ConversationEncoder):
    """Prompts without the head of a next answer."""

    def _render(self, messages: Any, continue_final: bool, options: Any) -> str:
        return self._template.render(messages, generation_prompt=False)


def spans(labels: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def said(encoder: PromptEncoder, found: Labelled, start: int, end: int) -> str:
    return b"".join(map(encoder.tokenizer.token_bytes, found.prompt.ids[start:end].tolist())).decode()


FAMILIES = ["mini", "byte-level", "thinking", "metaspace", "legacy", "unigram"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_what_was_said(
    name: str, cases: dict[str, Any], encoders: dict[str, Any], tools: Any
) -> None:
    """In turn, each answer and its end, for conversations whose texts hold the strings of added tokens too."""
    case, encoder = cases[name], encoders[name]
    whole = Whole(encoder.tokenizer, encoder.template, opens=case.spec.vision is not None)
    rng = random.Random()
    for _ in range(40):
        messages = tools.some_conversation(rng, encoder.tokenizer.added)
        learned = [m.role == "assistant" and rng.random() < 0.7 for m in messages]
        images = [rng_picture(rng) for m in messages for p in m.parts if not isinstance(p, TextPart)]
        try:
            found = encoder.encode_labelled(messages, images, learned)
        except BadRequest as refused:
            assert not any(learned) or "to be learned and text" in refused.message  # noqa: PT017
            continue
        located = encoder._conversation.located_ids(messages)
        assert located.ids == whole.ids(messages)
        assert not found.labels[0]
        for span in found.prompt.spans:
            assert not found.labels[span.start : span.start + span.length].any()
        blocks = spans(found.labels)
        expected = [
            "".join(p.text for p in m.parts) for m, is_learned in zip(messages, learned, strict=True) if is_learned
        ]
        joined = "".join(said(encoder, found, *block) for block in blocks)
        end = encoder.frame.closings[0] if encoder.frame.closings else ""
        if name in ("metaspace", "legacy"):  # (an end behind each part)
            expected = [p.text for m, is_learned in zip(messages, learned, strict=True) if is_learned for p in m.parts]
        kept = "".join(text + end for text in expected)
        if name != "unigram":  # (which normalises)
            assert squeezed(joined) == squeezed(kept)


def rng_picture(rng: random.Random) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def squeezed(text: str) -> str:
    """Without blanks, as of NFC: what tokenizers change."""
    return "".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_learned_where_it_is_given(name: str, encoders: dict[str, Any], tools: Any) -> None:
    """The prompt of the turns before is what stands before the first label."""
    encoder = encoders[name]
    rng = random.Random()
    for _ in range(20):
        before = [tools.say("user", tools.some_text(rng)), tools.say("assistant", "a cat"), tools.say("user", "and?")]
        answer = tools.say("assistant", rng.choice(["A circle", "日本", "4", "naïve.", "<|im_end|> is a mark"]))
        found = encoder.encode_labelled([*before, answer], [], [False, False, False, True])
        prompt = encoder.encode(before, [])
        first = spans(found.labels)[0][0]
        assert found.prompt.ids[:first].tolist() == prompt.ids.tolist()
        assert np.array_equal(found.prompt.positions[:, :first], prompt.positions)
        assert INSIDE not in found.remarks


def test_weights_choose_turns(encoders: dict[str, Any], tools: Any) -> None:
    encoder = encoders["byte-level"]
    messages = [m for n in range(3) for m in (tools.say("user", f"q{n}"), tools.say("assistant", f"a{n}"))]
    for chosen in ([1], [3], [1, 5], [1, 3, 5]):
        found = encoder.encode_labelled(messages, [], [n in chosen for n in range(6)])
        assert [said(encoder, found, *span) for span in spans(found.labels)] == [
            f"{messages[n].parts[0].text}<|im_end|>" for n in chosen
        ]
    found = encoder.encode_labelled(messages, [], [n == 3 for n in range(6)], everything=True)
    outside = [said(encoder, found, a, b) for (_, a), (b, _) in pairwise(spans(found.labels))]
    assert outside == ["a0", "a2"]
    assert not found.labels[0]


ALTERNATE = (
    "{%- for m in messages -%}{%- if loop.index0 % 2 != (m.role == 'assistant') | int -%}"
    "{{ raise_exception('Turns must alternate.') }}{%- endif -%}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((True, True), ["One.\n\nTwo<|im_end|>"]),
        ((False, True), ["Two<|im_end|>"]),
        ((True, False), ["One.\n\n"]),  # (the blank line is a part of the token)
    ],
)
def test_turns_that_the_template_wants_as_one(
    weights: tuple, expected: list[str], cases: dict[str, Any], tools: Any
) -> None:
    encoder = cases["byte-level"].with_template(ALTERNATE).encoder
    messages = [tools.say("user", "q"), tools.say("assistant", "One."), tools.say("assistant", "Two")]
    found = encoder.encode_labelled(messages, [], [False, *weights])
    shown = [said(encoder, found, *span) for span in spans(found.labels)]
    assert [text.rstrip("\n") for text in shown] == [text.rstrip("\n") for text in expected]


TURN, TAIL = "{%- for m in messages -%}<|im_start|>{{ m.role }}\n", "<|im_end|>{%- endfor -%}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{{ m.content | tojson }}", "hides where it stands"),
        ("{{ m.content }}{{ m.content }}", "more than once"),
        (
            "{{ m.content }}{% if m.reasoning_content %}{{ messages[0].content ~ m.reasoning_content }}{% endif %}",
            "other text within",
        ),
    ],
)
def test_what_a_template_hides_is_refused(body: str, message: str, cases: dict[str, Any]) -> None:
    encoder = cases["thinking"].with_template(TURN + body + TAIL).encoder
    messages = as_messages([("user", "What is it?"), ("assistant", "A red circle")])
    messages[1] = replace(messages[1], reasoning="so" if "reasoning" in body else None)
    with pytest.raises(BadRequest, match=message):
        encoder.encode_labelled(messages, [], [False, True])


def test_nothing_to_learn(encoders: dict[str, Any], tools: Any) -> None:
    encoder = encoders["byte-level"]
    for text in ("", " "):
        messages = [tools.say("user", "q"), tools.say("assistant", text)]
        with pytest.raises(BadRequest, match="nothing to be learned"):
            encoder.encode_labelled(messages, [], [False, False])
    with pytest.raises(BadRequest, match=r"messages\[1\]: the assistant's text is empty"):
        encoder.encode_labelled([tools.say("user", "q"), tools.say("assistant", "")], [], [False, True])


def test_text_of_two_writers_in_one_token(cases: dict[str, Any], tools: Any) -> None:
    encoder = cases["byte-level"].with_template("{%- for m in messages -%}{{ m.content }}{%- endfor -%}").encoder
    messages = as_messages([("user", "A circ"), ("assistant", "le")])
    with pytest.raises(BadRequest, match="text to be learned and text that is not"):
        encoder.encode_labelled(messages, [], [False, True])


def test_remarks(cases: dict[str, Any], tools: Any) -> None:
    def remarks(template: str, answer: str = "b") -> tuple[str, ...]:
        encoder = cases["byte-level"].with_template(template).encoder
        return encoder.encode_labelled(as_messages([("user", "a"), ("assistant", answer)]), [], [False, True]).remarks

    assert remarks(CHATML) == ()
    assert remarks(CHATML.replace("<|im_end|>", "")) == (NO_END,)
    assert remarks(CHATML.replace("assistant\\n'", "assistant\\n<tool_call>'")) == (OTHER_HEAD,)
    opened = CHATML.replace("assistant\\n'", "assistant\\n pict'").replace("'\\n' }}{{ m", "'\\n' }}{{ ' pict' + m")
    assert remarks(opened, "ure") == (INSIDE,)


def test_thoughts_that_are_cut_where_the_template_counts(cases: dict[str, Any]) -> None:
    """Numbers that a template writes are nobody's text: they hide no answer."""
    source = THINKS.replace(
        "{{ '<|im_start|>' + m.role + '\\n' + m.content",
        "{{ loop.index }}{{ '<|im_start|>' + m.role + '\\n' + m.content",
    )
    assert source != THINKS
    encoder = cases["thinking"].with_template(source).encoder
    turns = [("user", "a"), ("assistant", "<think>\nwhy\n</think>\n\nb"), ("user", "c"), ("assistant", "d")]
    found = encoder.encode_labelled(as_messages(turns), [], [False, True, False, True])
    learned = [said(encoder, found, *span) for span in spans(found.labels)]
    assert learned == ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


def test_the_oldest_chatml_ends_only_turns_that_others_follow(cases: dict[str, Any]) -> None:
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}"
        "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder = cases["byte-level"].with_template(template).encoder
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    found = encoder.encode_labelled(as_messages(turns), [], [False, True, False, True])
    assert [said(encoder, found, *span) for span in spans(found.labels)] == ["b<|im_end|>", "d"]
    assert found.remarks == (NO_END,)


def test_reasoning_is_learned_with_the_answer(cases: dict[str, Any]) -> None:
    encoder = cases["thinking"].with_template(THINKS).encoder
    messages = [Message("user", (TextPart("a"),)), Message("assistant", (TextPart("b"),), reasoning="because </think>")]
    found = encoder.encode_labelled(messages, [], [False, True])
    (span,) = spans(found.labels)
    assert said(encoder, found, *span) == "<think>\nbecause </think>\n</think>\n\nb<|im_end|>"


@pytest.mark.parametrize("name", ["thinks", "cuts", "trims"])
def test_strings_of_added_tokens_in_answers(name: str, cases: dict[str, Any]) -> None:
    """They are text, learned as text, and no end."""
    source = MARKED[name][0]
    case = cases["thinking"].with_template(source)
    encoder = case.encoder
    whole = Whole(encoder.tokenizer, encoder.template, opens=True)

    @SETTINGS
    @given(conversations(["x", " is", "日本", *STRINGS], []), st.booleans())
    def check(turns: list[tuple[str, str]], last_only: bool) -> None:
        messages = as_messages(turns)
        answers = [n for n, message in enumerate(messages) if message.role == "assistant"]
        assume(answers)
        learned = [n == answers[-1] if last_only else n in answers for n in range(len(messages))]
        try:
            found = encoder.encode_labelled(messages, [], learned)
        except BadRequest as refused:
            assert "empty" in refused.message or "leaves out" in refused.message  # noqa: PT017
            return
        ids = whole.ids(messages)
        assert found.prompt.ids.tolist() == ids
        ends = [i for i, is_label in zip(ids, found.labels, strict=True) if is_label and i in encoder.ends]
        assert len(ends) == sum(learned)

    check()
