"""Clients that leave, engines that die, servers that must stop: each request ends, and each end is seen."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from rich.console import Console
from running_server import RunningServer, config, post, read_all, wait_for

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.open_model import open_model
from opsin_server import embedded
from opsin_server.api import process
from opsin_server.api.listen_addresses import addresses, bind
from opsin_server.api.listener import Server
from opsin_server.api.model_digest import ModelDigest
from opsin_server.console import Loading
from opsin_server.ipc.messages import Ready
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}
SLOW = Script(b"x" * 990, delay=0.02)
PROMPTLY = 0.1  # seconds


def reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    raw.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [SLOW, Script(b"x", first_delay=1000)], ids=["between tokens", "before the first"])
def test_a_client_that_leaves_frees_the_engine_at_once(start: Any, stream: bool, leave: Any, script: Script) -> None:
    server = start(FakeEngine(script))
    assert any(delay_of_leaving(server, stream, leave) < PROMPTLY for _ in range(10))  # (a busy machine may be late)
    wait_for(lambda: len(server.services.admission) == 0)


def delay_of_leaving(server: RunningServer, stream: bool, leave: Any) -> float:
    """Seconds from the client's close to the engine's hearing of it."""
    before = len(server.engine.streams)
    raw = server.connect()
    raw.sendall(post({**CHAT, "stream": stream}))
    wait_for(lambda: len(server.engine.streams) > before)
    time.sleep(0.05)
    left = time.monotonic()
    leave(raw)
    wait_for(lambda: server.engine.streams[-1].cancelled_at is not None)
    return server.engine.streams[-1].cancelled_at - left


def test_a_client_that_leaves_while_its_prompt_is_encoded_starts_no_work(start: Any) -> None:
    server = start()
    encoder = server.services.encoder
    encoder.free.clear()
    raw = server.connect()
    raw.sendall(post(CHAT))
    wait_for(lambda: encoder.calls == 1)
    raw.close()
    wait_for(lambda: len(server.services.admission) == 0)  # nobody waits for the encoder
    encoder.free.set()
    server.client().chat.completions.create(**CHAT)
    assert len(server.engine.streams) == 1


def test_closing_a_stream_of_the_sdk_cancels_it(start: Any) -> None:
    server = start(FakeEngine(SLOW))
    stream = server.client().chat.completions.create(**CHAT, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: server.engine.streams[0].cancelled_at is not None)


def test_an_sdk_that_times_out_cancels_its_request(start: Any) -> None:
    server = start(FakeEngine(SLOW))
    while not server.engine.streams:  # on a busy machine the time is over before the engine has heard of it
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.2).chat.completions.create(**CHAT)
    wait_for(lambda: all(stream.cancelled_at is not None for stream in server.engine.streams))


def test_many_that_leave_at_any_moment_leave_nothing_behind(start: Any) -> None:
    server = start(FakeEngine(Script(b"x" * 20, delay=0.003)))

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        call = client.chat.completions.create(**CHAT, stream=number % 2 == 0)
        try:
            async with asyncio.timeout(number * 0.002):
                answer = await call
                if number % 2 == 0:
                    async for _ in answer:
                        pass
        except TimeoutError:
            pass

    async def all_of_them() -> None:
        async with server.async_client() as client:
            await asyncio.gather(*(one(client, number) for number in range(60)))

    asyncio.run(all_of_them())
    wait_for(lambda: len(server.services.admission) == 0 and all(stream.over for stream in server.engine.streams))
    wait_for(lambda: server.call(lambda: len(asyncio.all_tasks())) <= 3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "script",
    [Script(b"hello", die_after=0), Script(b"hello", error="the request was too much")],
    ids=["dies", "gives up"],
)
def test_a_failure_before_the_first_token_is_a_real_500(start: Any, stream: bool, script: Script) -> None:
    script = script if script.error is None else Script(b"", error=script.error)
    client = start(FakeEngine(script)).client()
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT, stream=stream)
    assert caught.value.code == "engine_failed"
    assert caught.value.request_id


def test_an_engine_that_dies_under_a_whole_answer(start: Any) -> None:
    client = start(FakeEngine(Script(b"hello", die_after=3))).client()
    with pytest.raises(openai.InternalServerError, match="the engine stopped"):
        client.chat.completions.create(**CHAT)


def test_an_engine_that_dies_under_streams(start: Any) -> None:
    server = start(FakeEngine(Script(b"hello", delay=0.01, die_after=3)))
    texts: list[str] = []

    def read() -> None:
        stream = server.client().chat.completions.create(**CHAT, stream=True)
        chunks: list[Any] = []
        with pytest.raises(openai.APIError, match="the engine stopped"):
            chunks.extend(stream)
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == ["hel"] * 6


def test_a_stream_that_failed_has_no_clean_end(start: Any) -> None:
    """Who ignores the error event still sees a body that breaks off."""
    server = start(FakeEngine(Script(b"hello", die_after=3)))
    with server.connect() as raw:
        raw.sendall(post({**CHAT, "stream": True}).replace(b"Connection: close\r\n", b""))
        data = read_all(raw)
    assert b'data: {"error":{"message":"the engine stopped' in data
    assert b"[DONE]" not in data
    assert not data.endswith(b"0\r\n\r\n")
    request = server.client()._client.stream("POST", "chat/completions", json={**CHAT, "stream": True})
    with request as response, pytest.raises(Exception, match="incomplete chunked read"):
        response.read()


def test_a_bug_under_a_stream_ends_it_with_an_error(start: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    server = start(FakeEngine(Script(b"hello", delay=0.01)))
    monkeypatch.setattr(
        "opsin_server.api.answer.output_text.OutputText._release", lambda self, piece: 1 // (4 - self.tokens)
    )
    stream = server.client().chat.completions.create(**CHAT, stream=True)
    with pytest.raises(openai.APIError, match="an error of its own"):
        list(stream)
    assert caplog.text.count("ZeroDivisionError") == 1
    wait_for(lambda: server.engine.streams[0].cancelled_at is not None)


@pytest.mark.parametrize(
    ("path", "last", "body"),
    [
        ("/v1/chat/completions", b"data: [DONE]\n\n", {**CHAT, "n": 2}),
        ("/v1/completions", b"data: [DONE]\n\n", {"model": "opsin-test", "prompt": ["a", "b"]}),
        ("/v1/messages", b'data: {"type":"message_stop"}\n\n', {**CHAT, "max_tokens": 9}),
        ("/v1/responses", b"\n\n", {"model": "opsin-test", "input": "hi", "store": False}),
    ],
)
def test_the_last_event_comes_with_the_end_of_the_body(plain: Any, path: str, last: bytes, body: Any) -> None:
    """SDKs leave when they have read it, and what is sent afterwards would find nobody."""
    sent: list[Any] = []
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": [(b"content-type", b"application/json")]}
    messages = [{"type": "http.request", "body": json.dumps({**body, "stream": True}).encode()}]

    async def receive() -> Any:
        """As uvicorn does, nothing but a disconnect once all is sent."""
        while not messages and (not sent or sent[-1].get("more_body", True)):
            await asyncio.sleep(0.001)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run_coroutine_threadsafe(plain.app(scope, receive, send), plain.loop).result(10)
    assert [message["more_body"] for message in sent[1:]].count(False) == 1
    assert sent[-1]["body"].endswith(last)
    assert not sent[-1]["more_body"]
    assert scope["opsin.request"].end is None  # nobody has left before it


def test_a_reader_who_stops_reading_is_cut_off(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.api.listen_addresses.DEAD_PEER_SECONDS", 1)
    server = start(FakeEngine(Script(b"x" * 10**6, batch=5_000, delay=0.001), max_context=10**7))
    with server.connect() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(post({**CHAT, "stream": True, "logprobs": True}))
        wait_for(lambda: len(server.engine.streams) == 1)
        wait_for(lambda: server.engine.streams[0].cancelled_at is not None)


# ---------------------------------------------------------------------------------------------- draining


def ready(server: RunningServer) -> int:
    with server.connect() as raw:
        raw.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return int(read_all(raw).split(b" ")[1])


def test_draining_finishes_what_runs_and_takes_nothing_new(start: Any) -> None:
    finish = threading.Event()
    server = start(FakeEngine(Script(b"x" * 25, held=finish, held_from=10)))
    texts: list[str] = []

    def read(stream: bool) -> None:
        answer = server.client().chat.completions.create(**CHAT, stream=stream)
        if stream:
            texts.append("".join(c.choices[0].delta.content or "" for c in answer))
        else:
            texts.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=read, args=(number < 6,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.engine.streams) == 8)
    assert ready(server) == 200
    server.stop()
    wait_for(lambda: server.services.admission.draining)
    assert ready(server) == 503
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(**CHAT)
    assert (caught.value.status_code, caught.value.code) == (503, "draining")
    assert caught.value.response.headers["connection"] == "close"
    assert "retry-after" in caught.value.response.headers
    finish.set()
    for thread in threads:
        thread.join(60)
    assert texts == ["x" * 25] * 8
    server.join()
    with pytest.raises(OSError):
        server.connect()


def test_an_idle_server_stops_at_once(start: Any) -> None:
    assert any(seconds_to_stop(start()) < 0.5 for _ in range(5))  # (a busy machine may be late)


def seconds_to_stop(server: RunningServer) -> float:
    client = server.client()
    client.chat.completions.create(**CHAT)  # its connection stays open
    began = time.monotonic()
    server.stop()
    server.join()
    return time.monotonic() - began


@pytest.mark.parametrize("way", ["timeout", "second signal"])
def test_what_does_not_finish_in_time_ends_with_an_error(start: Any, way: str) -> None:
    server = start(FakeEngine(SLOW), drain_timeout=0.2 if way == "timeout" else 1000.0)
    stream = iter(server.client().chat.completions.create(**CHAT, stream=True))
    next(stream)
    errors: list[openai.APIStatusError] = []

    def whole() -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().chat.completions.create(**CHAT)
        errors.append(caught.value)

    thread = threading.Thread(target=whole)
    thread.start()
    wait_for(lambda: len(server.engine.streams) == 2)
    server.stop()
    if way == "second signal":
        server.stop()
    with pytest.raises(openai.APIError, match="server"):
        list(stream)
    thread.join(60)
    assert errors[0].status_code == 503
    server.join()
    assert all(stream.cancelled_at is not None for stream in server.engine.streams)


def test_an_engine_that_gets_ready_while_the_server_ends_spoils_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listeners are closed by then, and `serve` has not returned yet."""
    closed, said = threading.Event(), io.StringIO()

    class Ends(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.stop()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            closed.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while not said.getvalue():
                        await asyncio.sleep(0.01)

    class Late(FakeEngine):
        def teach(self, vocabulary: object, tokens: object) -> None:
            pass

        async def wait_ready(self) -> Ready | None:
            while not closed.is_set():
                await asyncio.sleep(0.01)
            return self.ready

    monkeypatch.setattr("opsin_server.api.listener.Server", Ends)
    model = open_model(embedded.MODEL)
    gc.disable()  # as the command line does, until all is imported
    with State.open(StorageConfig(ephemeral=True)) as state, ThreadPoolExecutor(1) as elsewhere:
        serving = process._serve(
            config(),
            Late(),
            Loading(Console(file=said, width=200)),
            bind(addresses("127.0.0.1"), 0),
            model,
            ModelDigest(ContentDigest(model.files)),
            state,
        )
        elsewhere.submit(asyncio.run, serving).result(30)  # no signals outside of the main thread
    assert "http://127.0.0.1:" in said.getvalue()
    assert gc.isenabled(), "what a server leaves behind is collected"
