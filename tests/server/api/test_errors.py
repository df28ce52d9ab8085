"""Every refusal, as the OpenAI SDK's exceptions and over the bare wire."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from running_server import post, read_all

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "opsin-test", "messages": USER}


def shaped(error: openai.APIStatusError) -> dict[str, Any]:
    assert error.request_id
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    assert error.body["message"]
    return error.body


def test_400_names_the_field(plain: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        plain.client().chat.completions.create(**CHAT, verbosity="low")
    assert shaped(caught.value) == {
        "message": "Unsupported value for 'verbosity': \"low\" is not supported here: 'verbosity' must be null or "
        '"medium" or left out',
        "type": "invalid_request_error",
        "param": "verbosity",
        "code": "unsupported_parameter",
    }


def test_400_from_the_prompt(plain: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="the template refuses this"):
        plain.client().chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": "REFUSE"}])


def test_400_from_an_image(plain: Any) -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        plain.client().chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": parts}])
    assert shaped(caught.value)["param"] == "messages[0].content[1].image_url"


@pytest.mark.parametrize("stream", [False, True])
def test_400_when_the_context_is_too_small(start: Any, stream: bool) -> None:
    client = start(FakeEngine(Script(b"x"), max_context=10)).client()
    messages = [{"role": "user", "content": "x" * 10}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="opsin-test", messages=messages, stream=stream)
    body = shaped(caught.value)
    assert (body["code"], body["param"]) == ("context_length_exceeded", "messages")
    assert body["message"].count("10") == 2
    client.chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": "x" * 9}])
    client.chat.completions.create(**CHAT, max_tokens=8)
    for field in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(openai.BadRequestError, match="at most 8, not 9") as caught:
            client.chat.completions.create(**CHAT, **{field: 9})
        assert shaped(caught.value)["param"] == field


def test_401_without_the_key(start: Any) -> None:
    server = start(Script(b"x"), api_keys=("sk-one", "sk-two"))
    for key in ("sk-one", "sk-two"):
        server.client(api_key=key).chat.completions.create(**CHAT)
    for key in ("sk-three", "sk-on", "sk-one2", "SK-ONE", "x"):
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client(api_key=key).chat.completions.create(**CHAT)
        assert shaped(caught.value)["code"] == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        assert key not in caught.value.message


def test_404_lists_the_models(plain: Any) -> None:
    for call in (
        lambda client: client.chat.completions.create(model="gpt-5", messages=USER),
        lambda client: client.models.retrieve("gpt-5"),
        lambda client: client.models.retrieve("org/gpt-5"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call(plain.client())
        body = shaped(caught.value)
        assert (body["code"], body["param"]) == ("model_not_found", "model")
        assert "opsin-test, gpt-4o-2024-08-06" in body["message"]


def test_404_and_405_name_method_and_path(plain: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/images/generations"):
        plain.client().images.generate(model="opsin-test", prompt="hi")
    with pytest.raises(openai.APIStatusError, match="GET") as caught:
        plain.client().get("/chat/completions", cast_to=object)
    assert (caught.value.status_code, shaped(caught.value)["code"]) == (405, "method_not_allowed")


def test_413_before_and_while_the_body_is_read(start: Any) -> None:
    server = start(Script(b"x"), max_body_bytes=100_000)
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().chat.completions.create(
            model="opsin-test", messages=[{"role": "user", "content": "x" * 100_000}]
        )
    assert caught.value.status_code == 413
    assert "100000 bytes (--max-body-bytes)" in shaped(caught.value)["message"]
    with server.connect() as raw:  # only the head is sent
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")
    with server.connect() as raw:  # no length is given, and no end comes
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.sendall((b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 4)
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("stream", [False, True])
def test_500_for_a_bug_says_nothing_of_it(plain: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    canary = "CRASH canary-4711"
    messages = [{"role": "user", "content": canary}]
    with pytest.raises(openai.InternalServerError) as caught:
        plain.client().chat.completions.create(model="opsin-test", messages=messages, stream=stream)
    body = shaped(caught.value)
    assert body["type"] == "server_error"
    assert "canary" not in body["message"]
    assert "RuntimeError" in caplog.text
    assert "fake_encoder.py" in caplog.text
    assert "canary" not in caplog.text


def test_503_while_the_engine_cannot_work(start: Any) -> None:
    engine = FakeEngine(Script(b"x"))
    server = start(engine)
    for state in ("starting", "restarting", "failed", "stopped"):
        engine.state = state
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().chat.completions.create(**CHAT)
        assert caught.value.status_code == 503
        assert shaped(caught.value)["code"] == "unavailable"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert server.services.encoder.calls == 0
    engine.state = "ready"
    server.client().chat.completions.create(**CHAT)


def test_503_when_the_server_is_full(start: Any) -> None:
    server = start(FakeEngine(Script(b"x" * 50, delay=0.02)), max_queue=2)
    client = server.client()
    streams = [client.chat.completions.create(**CHAT, stream=True) for _ in range(2)]
    calls = server.services.encoder.calls
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    body = shaped(caught.value)
    assert (caught.value.status_code, body["code"]) == (503, "saturated")
    assert "--max-queue" in body["message"]
    assert "retry-after" in caught.value.response.headers
    assert server.services.encoder.calls == calls  # refused before any work
    for stream in streams:
        stream.close()


def test_the_sdk_retries_what_may_pass(start: Any) -> None:
    engine = FakeEngine(Script(b"hello"), state="restarting")
    server = start(engine)
    server.loop.call_soon_threadsafe(server.loop.call_later, 0.5, setattr, engine, "state", "ready")
    answer = server.client(max_retries=2).chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == "hello"


def test_a_client_may_name_its_request(plain: Any) -> None:
    client = plain.client()

    def answered(given: str) -> str:
        return client.models.with_raw_response.list(extra_headers={"x-request-id": given}).headers["x-request-id"]

    for sane in ("a", "req_0.9-Z", "x" * 128):
        assert answered(sane) == sane
    for odd in ("", "x" * 129, "a b", "a;b", 'a"', "a/b"):
        assert answered(odd).startswith("req_")


OBJECT = b'{"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]'
HOSTILE = {
    "empty": b"",
    "blank": b"   ",
    "not JSON": b"hello",
    "an array": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "cut off": OBJECT,
    "more after it": OBJECT + b"} x",
    "two objects": OBJECT + b"}" + OBJECT + b"}",
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in a field": OBJECT + b', "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in an unknown field": OBJECT + b', "foo": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many arrays": OBJECT + b', "foo": [' + b"[]," * 2_000_000 + b"1]}",
    "many fields": b"{" + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}",
    "NaN": OBJECT + b', "temperature": NaN}',
    "Infinity": OBJECT + b', "temperature": -Infinity}',
    "1e999": OBJECT + b', "temperature": 1e999}',
    "NaN in metadata": OBJECT + b', "metadata": {"a": NaN}}',
    "a long number": OBJECT + b', "seed": ' + b"9" * 1_000_000 + b"}",
    "a lone surrogate": b'{"model": "\\ud800", "messages": []}',
    "a surrogate in bytes": b'{"model": "\xed\xa0\x80", "messages": []}',
    "a lone low surrogate": b'{"model": "\\udc00", "messages": []}',
    "no UTF-8": b'{"model": "\xff", "messages": []}',
    "UTF-16": '{"model": "opsin-test"}'.encode("utf-16"),
    "a long name": b'{"' + b"x" * 100_000 + b'": 1}',
    "single quotes": b"{'model': 'opsin-test'}",
    "a comment": OBJECT + b"} // x",
    "a trailing comma": OBJECT + b",}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_gets_a_400_and_the_server_goes_on(plain: Any, body: bytes) -> None:
    with plain.connect() as raw:
        raw.sendall(post(body))
        answer = read_all(raw)
    head, _, data = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), answer[:300]
    assert b"content-type: application/json" in head
    error = json.loads(data)["error"]
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 1000
    assert plain.client().chat.completions.create(**CHAT).choices[0].message.content == "hello"


FINE = {
    "a null character": OBJECT.replace(b"hi", b"\\u0000") + b"}",
    "a pair of surrogates": OBJECT.replace(b"hi", b"\\ud83d\\ude42") + b"}",
    "blanks around": b" \r\n\t" + OBJECT + b"} \n",
    "a name twice, of which the last counts": b'{"model": "x", ' + OBJECT[1:] + b"}",
}


@pytest.mark.parametrize("body", FINE.values(), ids=FINE.keys())
def test_odd_but_valid_json_is_answered(plain: Any, body: bytes) -> None:
    with plain.connect() as raw:
        raw.sendall(post(body))
        assert read_all(raw).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("APPLICATION/JSON; charset=utf-8", 200),
        ("application/problem+json", 200),
        (None, 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("multipart/form-data; boundary=x", 400),
        ("", 400),
        ("application/jsonp", 400),
        ("\xff\xfe", 400),
    ],
)
def test_content_types(plain: Any, content_type: str | None, status: int) -> None:
    data = OBJECT + b"}"
    line = "" if content_type is None else f"Content-Type: {content_type}\r\n"
    head = (
        f"POST /chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n{line}\r\n"
    )
    with plain.connect() as raw:
        raw.sendall(head.encode("latin-1") + data)
        answer = read_all(raw)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert (b'"unsupported_content_type"' in answer) == (status == 400)


def test_a_body_that_stops_coming_times_out(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.api.routes.read_body.IDLE_SECONDS", 0.1)
    server = start()
    with server.connect() as raw:
        raw.sendall(post(OBJECT + b"}")[:-10])
        assert raw.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_body_that_drips_times_out(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then would otherwise hold a connection, and all that came before, for ever."""
    ten_seconds_a_look = SimpleNamespace(monotonic=itertools.count(0, 10).__next__)
    monkeypatch.setattr("opsin_server.api.routes.read_body.time", ten_seconds_a_look)
    server = start()
    with server.connect() as raw:
        raw.settimeout(0.05)
        raw.sendall(post(OBJECT + b"}")[:-50])
        answer, end = b"", time.monotonic() + 60
        while not answer and time.monotonic() < end:
            raw.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"more slowly than 10,000 bytes a second" in answer


def test_a_body_whose_client_leaves(start: Any) -> None:
    server = start()
    with server.connect() as raw:
        raw.sendall(post(OBJECT + b"}")[:-10])
    server.client().chat.completions.create(**CHAT)
    assert len(server.engine.streams) == 1
