"""What is asked and what is read back: fresh pictures, exact lengths, streams cut anywhere."""

from __future__ import annotations

import base64
import io
import json

import models
import pytest
from loadgen import dechunk, read_answer
from PIL import Image
from tokenizers import Tokenizer
from workload import Workload

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "A"}}]},
    {"choices": [{"delta": {"content": " cat"}}]},
    {"choices": [{"delta": {}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}},
]


def test_requests_are_fresh_and_of_an_exact_length(tmp_path):
    workload = Workload(models.MINI, tmp_path, text_tokens=64, seed=0)
    tokenizer = Tokenizer.from_file(str(models.MINI / "tokenizer.json"))
    lines = [line for _ in range(2) for line in workload.requests(3).read_text().splitlines()]
    urls = set()
    for line in lines:
        picture, text = json.loads(line)[0]["content"]
        assert len(tokenizer.encode(text["text"], add_special_tokens=False).ids) == 64
        data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (224, 224)
        urls.add(data)
    assert len(urls) == len(lines) == 6


def test_the_made_tokenizer_is_full_and_returns_what_it_took():
    tokenizer = models.make_tokenizer(2000)
    assert tokenizer.get_vocab_size() == 2000
    assert tokenizer.token_to_id("<|image_pad|>") == 6
    ids = tokenizer.encode(" ab cd éa").ids
    assert len(tokenizer.encode(" ab cd").ids) == 2
    assert tokenizer.decode(ids) == " ab cd éa"


def stream(chunked: bool) -> tuple[bytes, bytes]:
    body = [b"data: " + json.dumps(e).encode() + b"\n\n" for e in EVENTS] + [b": ping\n\n", b"data: [DONE]\n\n"]
    if not chunked:
        return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b"".join(body)
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in body)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", coded + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_a_stream_reads_the_same_wherever_it_is_cut(chunked, piece):
    raw = b"".join(stream(chunked))
    received = [(float(i), raw[i : i + piece]) for i in range(0, len(raw), piece)]
    answer = read_answer(-1.0, received)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("A cat", 5, 3)
    assert answer.error is None
    assert answer.first == answer.arrivals[0]
    assert len(answer.arrivals) == 2
    assert answer.first <= answer.end <= received[-1][0]
    for at, text in zip(answer.arrivals, (b'"A"', b'" cat"'), strict=True):
        assert at <= raw.index(text) + 200  # not when the last byte came
        assert int(at) + piece > raw.index(text)


def test_what_is_no_answer_is_an_error():
    assert "404" in (read_answer(0.0, [(1.0, b"HTTP/1.1 404 Not Found\r\n\r\nno")]).error or "")
    assert read_answer(0.0, []).error == "the connection was closed"
    head, body = stream(chunked=False)
    assert "no usage" in (read_answer(0.0, [(1.0, head + body[:150])]).error or "")


def test_an_unfinished_chunk_waits():
    assert dechunk(b"3\r\nabc\r\n2\r\nd") == (b"abc", b"2\r\nd")
