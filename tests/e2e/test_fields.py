"""What clients add to a request: fields that change nothing change nothing, and an assistant's message is continued."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from support.talk import MODEL_NAME, SAMPLES, assistant, data_url, user

CIRCLE = (SAMPLES / "red_circle.png").read_bytes()
QUESTION = user(CIRCLE, "What is in the picture?")


@pytest.fixture
def ask(client: openai.OpenAI):
    def ask(*messages: Any, **options: Any) -> openai.types.chat.ChatCompletion:
        options = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 48, **options}
        return client.chat.completions.create(messages=list(messages), **options)

    return ask


CHANGE_NOTHING: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "use_beam_search": False,
    "stop": "",
    "max_tokens": 48.0,
    "top_k": 40.0,
    "stream_options": {"include_usage": True},
    "add_generation_prompt": True,
    "continue_final_message": False,
    "skip_special_tokens": True,
    "min_tokens": 0,
    "length_penalty": 1.0,
    "chat_template_kwargs": {},
    "documents": [],
    "guided_json": None,
    "tools": None,
    "response_format": None,
    "keep_alive": "5m",
    "options": {},
    "request_id": "7301",
    "user": "someone",
    "metadata": {"a": "b"},
}


def test_what_clients_send_with_every_request_changes_no_answer(ask) -> None:
    plain = ask(QUESTION)
    for field, value in CHANGE_NOTHING.items():
        answer = ask(QUESTION, extra_body={field: value})
        assert answer.choices == plain.choices, field
        assert answer.usage.prompt_tokens == plain.usage.prompt_tokens, field


def test_what_clients_add_to_messages_changes_no_answer(ask) -> None:
    follow_up = user("Is there a square?")
    plain = ask(QUESTION, assistant("A red circle."), follow_up)
    question = {
        "role": "user",
        "name": "bob",
        "id": "m1",
        "timestamp": 1764403200,
        "content": [
            {"type": "input_image", "image_url": data_url(CIRCLE), "detail": None, "uuid": "7"},
            {"type": "input_text", "text": "What is in the picture?", "cache_control": {"type": "ephemeral"}},
        ],
    }
    answers = [
        {"content": "A red circle.", "reasoning_content": "I see a circle", "reasoning": "I see", "refusal": ""},
        {"content": [{"type": "output_text", "text": "A red circle.", "annotations": []}], "type": "message"},
    ]
    for answer in answers:
        other = ask(question, {"role": "assistant", **answer}, follow_up)
        assert other.choices == plain.choices
        assert other.usage.prompt_tokens == plain.usage.prompt_tokens
    empty = [ask(QUESTION, {"role": "assistant", **turn}, follow_up) for turn in ({"content": ""}, {"content": None})]
    assert empty[0].choices == empty[1].choices


def test_the_last_message_is_continued(ask) -> None:
    """The answer holds only what is new, from its first blank on."""
    more = {"continue_final_message": True, "add_generation_prompt": False}
    whole = ask(QUESTION)
    assert whole.choices[0].message.content == "A red circle."
    for start, end in (("A", " red circle."), ("A red", " circle."), ("A red circle", ".")):
        answer = ask(QUESTION, assistant(start), extra_body=more)
        assert answer.choices[0].message.content == end
        assert answer.usage.completion_tokens < whole.usage.completion_tokens
        chunks = ask(QUESTION, assistant(start), extra_body=more, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == end


def test_usage_in_every_chunk(ask) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(QUESTION, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == ask(QUESTION).usage.completion_tokens
    assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1
