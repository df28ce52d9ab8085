"""`n` answers to one request: each with its index, whole and streamed, and all of them ended with it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script

from support.served import wait_for

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}
SAID = [b"first answer", b"second", b"the third answer is long"]


def scripts(**changes: Any) -> FakeEngine:
    """Each choice says something else."""
    left = iter([Script(said, **changes) for said in SAID])
    return FakeEngine(lambda submit: next(left))


def test_a_whole_answer_has_all(start: Any) -> None:
    server = start(scripts(cached=5))
    answer = server.client().chat.completions.create(**CHAT, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [said.decode() for said in SAID]
    assert answer.usage.completion_tokens == sum(len(said) for said in SAID)
    assert answer.usage.total_tokens == answer.usage.completion_tokens + answer.usage.prompt_tokens
    assert server.engine.streams[0].submit.choices == 3


def test_a_stream_has_all_by_their_index(start: Any) -> None:
    server = start(scripts(delay=0.002))
    text, finish, roles = defaultdict(str), {}, []
    usage = None
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in server.client().chat.completions.create(**CHAT, n=3, **with_usage):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in finish, "nothing comes behind a choice's end"
            text[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            if choice.finish_reason:
                finish[choice.index] = choice.finish_reason
    assert roles == [0, 1, 2]
    assert [text[index] for index in range(3)] == [said.decode() for said in SAID]
    assert finish == dict.fromkeys(range(3), "stop")
    assert usage.completion_tokens == sum(len(said) for said in SAID)


def test_a_stop_string_ends_the_choice_that_wrote_it(start: Any) -> None:
    server = start(scripts(delay=0.002))
    answer = server.client().chat.completions.create(**CHAT, n=3, stop=["co"])
    assert [choice.message.content for choice in answer.choices] == ["first answer", "se", "the third answer is long"]
    assert [stream.cancelled_at is not None for stream in server.engine.streams] == [False, True, False]


def test_who_leaves_ends_all(start: Any) -> None:
    server = start(scripts(delay=5.0))
    streams = server.engine.streams
    while not streams:  # on a busy machine the time is over before the engine has heard of it
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.2).chat.completions.create(**CHAT, n=3)
    assert len(streams) % 3 == 0
    wait_for(lambda: all(stream.cancelled_at for stream in streams))


def test_an_engine_that_dies_is_an_error_of_the_whole(start: Any) -> None:
    left = iter([Script(b"hello"), Script(b"hello", die_after=2), Script(b"hello")])
    server = start(FakeEngine(lambda submit: next(left)))
    with pytest.raises(openai.InternalServerError):
        server.client().chat.completions.create(**CHAT, n=3)


@pytest.mark.parametrize("wrong", [0, 17, -1, True, "2", 1.5])
def test_there_are_one_to_sixteen(plain: Any, wrong: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        plain.client().chat.completions.create(**CHAT, extra_body={"n": wrong})
    assert caught.value.param == "n"
