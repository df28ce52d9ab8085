"""Answers, whole and streamed, as the OpenAI SDK reads them."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import pytest
from fake_encoder import END, IMAGE_TOKENS
from fake_engine import FakeEngine, Script
from PIL import Image
from running_server import post, read_all

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "opsin-test", "messages": USER}


def picture(color: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_whole_answer(start: Any) -> None:
    server = start(Script(b"hello", cached=1))
    response = server.client().chat.completions.with_raw_response.create(**CHAT)
    answer = response.parse()
    assert answer.choices[0].message.content == "hello"
    assert (answer.choices[0].finish_reason, answer.choices[0].index, answer.choices[0].logprobs) == ("stop", 0, None)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "opsin-test", "v1-test")
    assert answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 5, 7)
    details = usage.prompt_tokens_details
    assert (details.cached_tokens, details.image_tokens, details.text_tokens) == (1, 0, 2)
    assert response.request_id == response.headers["x-request-id"]
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers.get("server") is None


def test_the_same_answer_streamed(start: Any) -> None:
    server = start(Script(b"hello", cached=1))
    stream = server.client().chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * 6 + ["stop"]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 5)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 1
    assert len({(c.id, c.created, c.model, c.object, c.system_fingerprint) for c in chunks}) == 1
    assert stream.response.headers["content-type"].startswith("text/event-stream")


def test_without_include_usage_no_chunk_has_one(plain: Any) -> None:
    chunks = list(plain.client().chat.completions.create(**CHAT, stream=True))
    assert all("usage" not in c.to_dict() for c in chunks)
    assert all(c.choices for c in chunks)


def test_usage_in_every_chunk_when_it_is_asked_for(start: Any) -> None:
    client = start(Script(b"hello", cached=1)).client()
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert [c.usage.completion_tokens for c in chunks] == [0, 1, 2, 3, 4, 5, 5, 5]
    assert {c.usage.prompt_tokens for c in chunks} == {2}
    assert chunks[-1].choices == []


def test_the_route_without_v1(plain: Any) -> None:
    client = plain.client(api_key="x")
    client.base_url = plain.url
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "hello"
    assert client.models.list().data[0].id == "opsin-test"


def test_every_name_of_the_model_answers_to_it(plain: Any) -> None:
    answer = plain.client().chat.completions.create(model="gpt-4o-2024-08-06", messages=USER)
    assert answer.model == "gpt-4o-2024-08-06"


def test_a_conversation_goes_on_with_the_answer_of_the_sdk(plain: Any) -> None:
    client = plain.client()
    first = client.chat.completions.create(**CHAT)
    messages = [*USER, first.choices[0].message, {"role": "user", "content": "and"}]
    assert client.chat.completions.create(model="opsin-test", messages=messages).usage.prompt_tokens == 10


TEXTS = ["é∞🙂 한국어", "a\u2028b\u2029c\x85d\x0b\x0c\x1c\r\n\ne", 'data: [DONE]\n\n"\\', "\x00\x7f"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_text_arrives_as_it_is(start: Any, text: str, batch: int) -> None:
    client = start(Script(text.encode(), batch=batch)).client()
    assert client.chat.completions.create(**CHAT).choices[0].message.content == text
    chunks = client.chat.completions.create(**CHAT, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


def test_half_a_character_at_the_end_is_shown(start: Any) -> None:
    client = start(Script("ab🙂".encode()[:-1], finish="length")).client()
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "ab\ufffd"
    chunks = client.chat.completions.create(**CHAT, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "ab\ufffd"


def test_an_empty_answer(start: Any) -> None:
    client = start(Script(b"")).client()
    answer = client.chat.completions.create(**CHAT)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 0
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert [c.choices[0].finish_reason for c in chunks] == [None, "stop"]


def test_max_tokens_ends_with_length(plain: Any) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = plain.client().chat.completions.create(**CHAT, **{field: 3})
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hel", "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_stop_string_ends_the_answer_and_the_work(start: Any, stream: bool, batch: int) -> None:
    engine = FakeEngine(Script(b"one END two" + b"x" * 100, delay=0.001, batch=batch))
    client = start(engine).client()
    options = {**CHAT, "stop": ["END", "never"], "logprobs": True}
    if stream:
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        usage, choices = chunks[-1].usage, [c.choices[0] for c in chunks[:-1]]
        text = "".join(c.delta.content or "" for c in choices)
        logprobs = [p for c in choices if c.logprobs for p in c.logprobs.content]
        finish = choices[-1].finish_reason
    else:
        answer = client.chat.completions.create(**options)
        usage, choice = answer.usage, answer.choices[0]
        text, finish, logprobs = choice.message.content, choice.finish_reason, choice.logprobs.content
    assert (text, finish) == ("one ", "stop")
    assert "".join(p.token for p in logprobs) == text
    assert usage.completion_tokens == 7  # the stop string's own tokens were generated
    assert engine.streams[0].cancelled_at is not None


def test_a_stop_string_that_does_not_come_is_shown_at_the_end(start: Any) -> None:
    client = start(Script(b"one EN")).client()
    chunks = list(client.chat.completions.create(**CHAT, stop="END", stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one EN"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_text(start: Any, stream: bool) -> None:
    """A special token has no text, so it has no entry; a character of several tokens has several."""
    tokens = [*"aé".encode(), END, *b"b"]
    client = start(Script(tokens)).client()
    options = {**CHAT, "logprobs": True, "top_logprobs": 2, "extra_body": {"ignore_eos": True}}
    if stream:
        choices = [c.choices[0] for c in client.chat.completions.create(**options, stream=True)]
        entries = [p for c in choices if c.logprobs for p in c.logprobs.content]
    else:
        entries = client.chat.completions.create(**options).choices[0].logprobs.content
    assert [p.bytes for p in entries] == [[byte] for byte in "aéb".encode()]
    assert entries[0].token == "a"
    assert entries[0].logprob == -0.5
    assert [(t.token, t.logprob) for t in entries[0].top_logprobs] == [("a", -0.5), ("b", -1.5)]
    assert bytes(b for p in entries for b in p.bytes).decode() == "aéb"


def test_logprobs_without_alternatives(plain: Any) -> None:
    choice = plain.client().chat.completions.create(**CHAT, logprobs=True).choices[0]
    assert [p.top_logprobs for p in choice.logprobs.content] == [[]] * 5


def test_what_the_engine_is_told(start: Any) -> None:
    engine = FakeEngine(Script(b"x"))
    client = start(engine).client()
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": picture("red"), "detail": "low"}},
        {"type": "image", "image": picture("blue")},
    ]
    answer = client.chat.completions.create(
        model="opsin-test",
        messages=[{"role": "user", "content": parts}],
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        logprobs=True,
        top_logprobs=3,
        max_tokens=7,
        extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True, "priority": -7},
    )
    message, arrays = engine.streams[0].submit, engine.arrays[0]
    sampling = message.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.seed, sampling.top_logprobs) == (2**63 - 1, 3)
    assert (message.max_tokens, message.eos, message.axes, message.priority) == (7, (), 1, -7)
    assert message.request_id == answer.id
    assert [item.shape for item in message.items] == [(1, 192), (1, 192)]
    assert [frame.shape for frame in arrays.pixels] == [(1, 192), (1, 192)]
    assert len(arrays.ids) == 1 + 2 * IMAGE_TOKENS
    assert answer.usage.prompt_tokens_details.image_tokens == 2 * IMAGE_TOKENS


def test_what_the_engine_is_told_by_default(start: Any) -> None:
    engine = FakeEngine(Script(b"x"), max_context=100)
    client = start(engine).client()
    for _ in range(2):
        client.chat.completions.create(**CHAT)
    first, second = (stream.submit for stream in engine.streams)
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.top_k, first.sampling.min_p) == (
        1,
        1,
        0,
        0,
    )
    assert first.sampling.top_logprobs == -1
    assert first.sampling.seed != second.sampling.seed  # each draws its own
    assert (first.max_tokens, first.eos) == (98, (END,))


def test_a_stream_says_nothing_of_an_id_twice(plain: Any) -> None:
    ids = {plain.client().chat.completions.create(**CHAT).id for _ in range(5)}
    assert len(ids) == 5


def test_pings_while_the_first_token_is_awaited(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.api.answer.event_stream.STATUS_SECONDS", 0.02)
    monkeypatch.setattr("opsin_server.api.answer.event_stream.PING_SECONDS", 0.1)
    speak = threading.Event()
    server = start(Script(b"hello", held=speak))
    stream = server.client().chat.completions.create(**CHAT, stream=True)  # its status line came
    with server.connect() as raw:
        began, data = time.monotonic(), b""
        raw.sendall(post({**CHAT, "stream": True}))
        while data.count(b": ping\n\n") < 3:
            block = raw.recv(65536)
            assert block
            data += block
        speak.set()
        data += read_all(raw)
    assert data.count(b": ping\n\n") <= 1 + (time.monotonic() - began) / 0.1
    assert data.rindex(b": ping") < data.index(b"data: ")
    assert "".join(c.choices[0].delta.content or "" for c in stream) == "hello"
