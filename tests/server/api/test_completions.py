"""/v1/completions, /tokenize and /detokenize in front of a fake engine, whose tokens are bytes."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from fake_encoder import END
from fake_engine import FakeEngine, Script

from support.served import PLAIN

MODEL = "opsin-test"


def ask(server: Any, **options: Any) -> Any:
    return server.client().completions.create(model=MODEL, **options)


def prompts(server: Any) -> list[list[int]]:
    return [arrays.ids.tolist() for arrays in server.engine.arrays]


def test_each_prompt_is_a_request_and_choices_come_in_their_order(start: Any) -> None:
    server = start(FakeEngine(lambda submit: Script(b"ab"[: submit.choices], cached=2)))
    answer = ask(server, prompt=["one", "four"], n=2, max_tokens=1, seed=3, echo=True, best_of=2)
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (0, "onea", "length"),
        (1, "onea", "length"),
        (2, "foura", "length"),
        (3, "foura", "length"),
    ]
    assert prompts(server) == [list(b"one"), list(b"four")]
    assert {stream.submit.request_id for stream in server.engine.streams} >= {answer.id}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 4)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4  # of both prompts, each once
    chunks = list(ask(server, prompt=[[7, 8], [9]], max_tokens=1, stream=True, stream_options={"include_usage": True}))
    assert sorted((c.index, c.text) for chunk in chunks for c in chunk.choices) == [(0, "a"), (1, "a")]
    assert chunks[-1].usage.total_tokens == 5
    assert prompts(server)[2:] == [[7, 8], [9]]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_in_the_old_shape(start: Any, stream: bool) -> None:
    server = start(Script("aé!".encode(), finish="stop"))
    answer = ask(server, prompt="x", logprobs=2, stream=stream)
    parts = [choice for chunk in (answer if stream else [answer]) for choice in chunk.choices]
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in part.logprobs.to_dict().items():
            found.setdefault(name, []).extend(values)
    assert "".join(part.text for part in parts) == "aé!"
    assert found["tokens"] == ["a", "�", "�", "!"]
    assert found["text_offset"] == [0, 1, 1, 2]
    assert found["token_logprobs"] == [-0.5] * 4
    assert found["top_logprobs"][0] == {"a": -0.5, "b": -1.5}


def test_a_prompts_own_tokens_have_logprobs(start: Any) -> None:
    server = start(Script(b"d", finish="length"))
    answer = ask(server, prompt=[[*b"a", END, *"bé".encode()], [7]], echo=True, logprobs=1, max_tokens=1)
    one, other = answer.choices
    assert (one.text, other.text) == ("abéd", "\x07d")
    assert one.logprobs.tokens == ["a", "<|end|>", "b", "�", "�", "d"]
    assert one.logprobs.token_logprobs == [None, -0.25, -0.25, -0.25, -0.25, -0.5]
    assert one.logprobs.top_logprobs[:3] == [None, {"b": -1.25, "<|end|>": -0.25}, {"\x01": -1.25, "b": -0.25}]
    assert one.logprobs.text_offset == [0, 1, 1, 2, 2, 3]
    assert other.logprobs.token_logprobs == [None, -0.5]
    both: Any = ask(server, prompt="abc", max_tokens=0, n=2, extra_body={"prompt_logprobs": 2})
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (3, 0)
    expected = [
        None,
        {
            "98": {"logprob": -0.25, "rank": 2, "decoded_token": "b"},
            "99": {"logprob": -2.25, "rank": 2, "decoded_token": "c"},
        },
        {
            "99": {"logprob": -0.25, "rank": 2, "decoded_token": "c"},
            "100": {"logprob": -2.25, "rank": 2, "decoded_token": "d"},
        },
    ]
    assert [(choice.text, choice.prompt_logprobs) for choice in both.choices] == [("", expected)] * 2


def test_a_special_token_in_a_prompt_is_text_unless_it_is_asked_for(start: Any) -> None:
    server = start()
    ask(server, prompt="a<|end|>b")
    ask(server, prompt="a<|end|>b", extra_body={"parse_special": True})
    assert prompts(server) == [list(b"a<|end|>b"), [97, END, 98]]
    with httpx.Client(base_url=server.url, **PLAIN) as http:
        plain = http.post("/tokenize", json={"model": MODEL, "prompt": "a<|end|>", "return_token_strs": True}).json()
        assert plain["tokens"] == list(b"a<|end|>")
        assert (plain["count"], plain["max_model_len"], plain["token_strs"][0]) == (8, 1000, "a")
        special = http.post("/tokenize", json={"prompt": "a<|end|>", "parse_special": True}).json()
        assert special == {"count": 2, "max_model_len": 1000, "tokens": [97, END], "token_strs": None}
        chat = http.post("/tokenize", json={"prompt": None, "messages": [{"role": "user", "content": "hi"}]}).json()
        assert chat["tokens"] == list(b"hi")
        assert http.post("/detokenize", json={"tokens": [97, END]}).json() == {"prompt": "a<|end|>"}
        for path, body in (("/detokenize", {"tokens": [999]}), ("/tokenize", {"prompt": "x" * 100_000})):
            assert http.post(path, json=body).status_code == 400
        assert http.post("/tokenize", json={"prompt": "x", "model": "other"}).json()["error"]["code"] == (
            "model_not_found"
        )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [["a"], [1]]}, "prompt[0]"),
        ({"prompt": ["x", "x" * 1100]}, "prompt[1]"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt"),
        ({"prompt": "x" * 999}, "max_tokens"),
        ({"prompt": "x", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "x", "echo": True, "logprobs": 0, "stream": True}, "stream"),
        ({"prompt": "x", "stream": True, "extra_body": {"prompt_logprobs": 0}}, "stream"),
        ({"prompt": ["x" * 900] * 64, "extra_body": {"prompt_logprobs": 20}}, "prompt_logprobs"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "logprobs": 6}, "logprobs"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "extra_body": {"tools": [{}]}}, "tools"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(plain: Any, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(plain, **options)
    assert refused.value.param == param


def test_a_stream_whose_engine_dies_ends_in_an_error(start: Any) -> None:
    server = start(Script(b"abc", die_after=2, delay=0.01))
    with pytest.raises(openai.APIError, match="engine stopped"):
        list(ask(server, prompt="x", stream=True))
