"""What a model thinks comes in a field of its own, whole and streamed, and is no part of the answer."""

from __future__ import annotations

from typing import Any

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine, Script
from running_server import RunningServer

from opsin_server.text.reasoning import ReasoningFormat

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}


class Thinking(FakeEncoder):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.reasoning = ReasoningFormat("<think>", "</think>")
        self.inside = inside

    def thinks_already(self, prompt: Any) -> bool:
        return self.inside


@pytest.mark.parametrize(
    ("said", "inside"), [(b"<think>\nhm, a cat</think>\n\nA cat.", False), (b"hm, a cat</think>A cat.", True)]
)
def test_thoughts_stand_beside_the_answer(said: bytes, inside: bool) -> None:
    server = RunningServer(FakeEngine(Script(said, batch=5)), Thinking(inside))
    try:
        answer = server.client().chat.completions.create(**CHAT)
        whole, length = answer.choices[0], said.index(b"A cat.") - said[: said.index(b"A cat.")].endswith(b"\n\n") * 2
        assert answer.usage.completion_tokens_details.reasoning_tokens == length
        responded = server.client().responses.create(model="opsin-test", input="hi", store=False)
        assert responded.usage.output_tokens_details.reasoning_tokens == length
        assert (whole.message.content, whole.finish_reason) == ("A cat.", "stop")
        assert whole.message.reasoning_content == "hm, a cat"
        thoughts, text = "", ""
        for chunk in server.client().chat.completions.create(**CHAT, stream=True):
            delta = chunk.choices[0].delta
            assert not (text and getattr(delta, "reasoning_content", None)), "thoughts come first"
            thoughts += getattr(delta, "reasoning_content", None) or ""
            text += delta.content or ""
        assert (thoughts, text) == ("hm, a cat", "A cat.")
    finally:
        server.close()


def test_an_answer_that_is_cut_while_it_thinks_has_said_nothing() -> None:
    server = RunningServer(FakeEngine(Script(b"<think>a long thought")), Thinking(inside=False))
    try:
        answer = server.client().chat.completions.create(**CHAT, max_tokens=14)
        assert answer.usage.completion_tokens_details.reasoning_tokens == 14
        choice = answer.choices[0]
        assert (choice.finish_reason, choice.message.content) == ("length", "")
        assert choice.message.reasoning_content == "a long"
    finally:
        server.close()


@pytest.mark.parametrize(
    "wrong", [{"messages": []}, {"enable_thinking": [1]}, {"date_string": "x" * 300}, {"tools": None}, "x"]
)
def test_only_known_variables_reach_a_template(plain: Any, wrong: Any) -> None:
    with pytest.raises(Exception, match="chat_template_kwargs"):
        plain.client().chat.completions.create(**CHAT, extra_body={"chat_template_kwargs": wrong})


def test_a_known_variable_does(start: Any) -> None:
    options = []

    class Noting(FakeEncoder):
        def encode(self, *given: Any, **named: Any) -> Any:
            options.append(given[3])
            return super().encode(*given, **named)

    server = RunningServer(FakeEngine(Script(b"x")), Noting())
    try:
        fields = {"chat_template_kwargs": {"enable_thinking": False}}
        server.client().chat.completions.create(**CHAT, extra_body=fields)
        assert options[0].for_template() == {"enable_thinking": False}
    finally:
        server.close()
