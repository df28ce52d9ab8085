"""Anthropic's own SDK on the shared server: the answers are those of the same chats."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

import anthropic
import openai
import pytest

from support.served import PLAIN, Served
from support.talk import MODEL_NAME, png, sample, user

PAINT: Any = {
    "name": "paint",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "coats": {"enum": [1, 2]}},
        "required": ["colour", "coats"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def claude(served: Served) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(base_url=served.url, **PLAIN)
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=60, http_client=http)


def picture(name: str) -> Any:
    data = base64.b64encode(png(sample(name))).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def asked(question: str, **options: Any) -> Any:
    content = [picture("square_and_star.png"), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL_NAME, "max_tokens": 40, "messages": messages, "extra_body": {"temperature": 0}, **options}


def test_an_answer_is_that_of_the_chat(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    question = "Describe the picture."
    chat = client.chat.completions.create(
        model=MODEL_NAME, temperature=0, messages=[user(sample("square_and_star.png"), question)]
    )
    whole = claude.messages.create(**asked(question))
    with claude.messages.stream(**asked(question)) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert whole.content[0].text == text == chat.choices[0].message.content
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    for used in (whole.usage, streamed.usage):
        assert used.input_tokens + used.cache_read_input_tokens == chat.usage.prompt_tokens
        assert used.output_tokens == chat.usage.completion_tokens
    asked_again = asked(question)
    del asked_again["max_tokens"], asked_again["extra_body"]
    assert claude.messages.count_tokens(**asked_again).input_tokens == chat.usage.prompt_tokens
    words = text.split()
    begun = asked(question)
    begun["messages"].append({"role": "assistant", "content": " ".join(words[:2])})
    assert (" ".join(words[:2]) + claude.messages.create(**begun).content[0].text).split() == words
    cut = claude.messages.create(**asked(question, stop_sequences=[words[2]]))
    assert (cut.content[0].text.split(), cut.stop_reason, cut.stop_sequence) == (words[:2], "stop_sequence", words[2])


def test_a_tool_is_called_and_answered(claude: anthropic.Anthropic) -> None:
    options = {"tools": [PAINT], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 150}
    request = asked("Paint it.", **options)
    answer = claude.messages.create(**request)
    (call,) = answer.content
    assert (answer.stop_reason, call.type, call.name, call.id[:6]) == ("tool_use", "tool_use", "paint", "toolu_")
    assert call.input["colour"] in ("red", "blue")
    with claude.messages.stream(**request) as stream:
        parts = [event.delta.partial_json for event in stream if event.type == "content_block_delta"]
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input == json.loads("".join(parts))
    cut = claude.messages.create(**{**request, "max_tokens": answer.usage.output_tokens * 2 // 3})
    assert (cut.stop_reason, cut.content) == ("max_tokens", [])
    stopped = {**request, "stop_sequences": ["green", call.input["colour"]]}
    cut = claude.messages.create(**stopped)
    assert (cut.stop_reason, cut.stop_sequence, cut.content) == ("stop_sequence", call.input["colour"], [])
    last = [event.delta for event in claude.messages.create(**stopped, stream=True) if event.type == "message_delta"]
    assert [(end.stop_reason, end.stop_sequence) for end in last] == [("stop_sequence", call.input["colour"])]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [picture("cat.png")]}
    turns = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = claude.messages.create(
        **{**request, "messages": [*request["messages"], *turns], "tool_choice": {"type": "none"}}
    )
    assert after.stop_reason in ("end_turn", "max_tokens")
    assert after.content[0].type == "text"


def test_the_sdks_own_runner_of_tools_goes_round(claude: anthropic.Anthropic) -> None:
    @anthropic.beta_tool
    def look(colour: Literal["red", "blue"]) -> str:
        """Looks for things of a colour."""
        seen.append(colour)
        return "Nothing."

    seen: list[str] = []
    options: Any = {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_iterations": 2}
    runner = claude.beta.messages.tool_runner(tools=[look], **asked("Look.", **options, max_tokens=150))
    assert [message.stop_reason for message in runner] == ["tool_use"] * 2
    assert len(seen) == 2
    assert set(seen) <= {"red", "blue"}
