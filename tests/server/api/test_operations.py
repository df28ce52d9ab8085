"""What those who run the server see of it: health, metrics, log lines, and the listener."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from prometheus_client.parser import text_string_to_metric_families
from running_server import post, read_all, wait_for

from opsin_server import __version__
from opsin_server.api.listener import Protocol
from opsin_server.ipc.messages import Stats
from opsin_server.metrics import Metrics
from support.served import dispositions

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}


def get(server: Any, path: str, headers: str = "") -> tuple[int, bytes, bytes]:
    with server.connect() as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
        head, _, body = read_all(raw).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, body


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [
        ("starting", 200, 503),
        ("ready", 200, 200),
        ("restarting", 200, 503),
        ("failed", 503, 503),
        ("stopped", 503, 503),
    ],
)
def test_health_follows_the_engine(start: Any, state: Any, live: int, ready: int) -> None:
    server = start(FakeEngine(state=state))
    for path, wanted in (("/health/live", live), ("/health/ready", ready)):
        status, _, body = get(server, path)
        assert status == wanted
        assert ("reason" in json.loads(body)) == (wanted == 503)


def test_a_silent_engine_is_neither_live_nor_ready(start: Any) -> None:
    engine = FakeEngine(silent_since=time.monotonic() - 31)
    server = start(engine)
    assert get(server, "/health/live")[0] == 503
    assert get(server, "/health/ready")[0] == 503
    engine.state = "starting"  # loading is quiet
    assert get(server, "/health/live")[0] == 200


def test_models_and_version(start: Any) -> None:
    engine = FakeEngine(state="starting")
    server = start(engine)
    first, second = server.client().models.list().data
    assert (first.id, first.object, first.owned_by) == ("opsin-test", "model", "opsin")
    takes = {
        "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text", "embeddings"]},
        "limit_mm_per_prompt": {"image": 32},
    }
    base = {"root": "opsin-test", "parent": None, **takes}
    assert first.model_extra == {**base, "max_model_len": None, "opsin": None}
    engine.state = "ready"
    about = server.client().models.retrieve(second.id).model_extra
    assert about is not None
    assert about.pop("opsin").keys() == {"dtype", "weights", "tasks", "embeddings"}
    assert about == {"root": second.id, "parent": None, "max_model_len": 1000, **takes}
    said = json.loads(get(server, "/version")[2])
    assert said["fingerprint"] == "v1-test"
    assert said["version"] == __version__
    assert said["digest"] is None
    server.digest = "sha256:0123"
    assert json.loads(get(server, "/version")[2]) == {**said, "digest": "sha256:0123"}


def test_metrics_count_what_happened(start: Any) -> None:
    server = start(FakeEngine(Script(b"hello")))
    client = server.client()
    list(client.chat.completions.create(**CHAT, stream=True))
    client.chat.completions.create(**CHAT)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**CHAT, verbosity="low")
    get(server, "/nothing/here")
    get(server, "/nothing/there")
    _, head, body = get(server, "/metrics")
    assert b"text/plain; version=" in head
    families = {f.name: f for f in text_string_to_metric_families(body.decode())}
    assert all(family.documentation for family in families.values())
    values = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert values["opsin_requests_total", "/v1/chat/completions", "200"] == 2
    assert values["opsin_requests_total", "/v1/chat/completions", "400"] == 1
    assert values["opsin_requests_total", "other", "404"] == 2
    assert values["opsin_prompt_tokens_total",] == 4
    assert values["opsin_generation_tokens_total",] == 10
    assert values["opsin_image_tokens_total",] == 0
    assert values["opsin_time_to_first_token_seconds_count",] == 2
    assert values["opsin_inter_token_seconds_count",] == 8
    assert values["opsin_queue_seconds_sum",] == 0.5
    assert values["opsin_requests_in_flight",] == 0
    for ours, theirs, value in (
        ("opsin_requests_running", "vllm:num_requests_running", 1),
        ("opsin_requests_waiting", "vllm:num_requests_waiting", 2),
        ("opsin_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", 0.25),
    ):
        assert values[ours, "0"] == values[theirs, "0", "opsin-test"] == value
    assert values["opsin_kv_blocks", "0", "free"] == 9
    for name in families:
        assert re.fullmatch(r"opsin_[a-z_]+(?<!_ms)|vllm:[a-z_]+", name)


def test_each_engine_has_its_own_counts() -> None:
    engines = {
        "0": FakeEngine(stats=Stats(running=1, blocks_used=1, blocks_free=3, seconds={"decode.model": 1.5})),
        "1": FakeEngine(stats=Stats(running=2, steps=7, blocks_free=4), restarts=3),
    }
    metrics = Metrics()
    metrics.watch(lambda: engines, lambda: 5, "name")
    lines = metrics.text().decode().splitlines()
    for line in (
        "opsin_requests_in_flight 5.0",
        'opsin_requests_running{engine="0"} 1.0',
        'opsin_requests_running{engine="1"} 2.0',
        'vllm:num_requests_running{engine="1",model_name="name"} 2.0',
        'opsin_kv_cache_usage_ratio{engine="0"} 0.25',
        'vllm:kv_cache_usage_perc{engine="1",model_name="name"} 0.0',
        'opsin_kv_blocks{engine="1",state="free"} 4.0',
        'opsin_steps_total{engine="1"} 7.0',
        'opsin_step_seconds_total{engine="0",part="decode.model"} 1.5',
        'opsin_engine_restarts_total{engine="0"} 0.0',
        'opsin_engine_restarts_total{engine="1"} 3.0',
    ):
        assert line in lines
    engines["0"].stats = Stats(running=9)
    assert b'opsin_requests_running{engine="0"} 9.0' in metrics.text(), "the newest are published"


def test_two_applications_share_no_metrics(start: Any) -> None:
    one, two = start(), start()
    one.client().chat.completions.create(**CHAT)
    assert b"opsin_generation_tokens_total 5.0" in get(one, "/metrics")[2]
    assert b"opsin_generation_tokens_total 0.0" in get(two, "/metrics")[2]


@pytest.mark.parametrize("stream", [False, True])
def test_one_line_a_request_without_what_was_said(start: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "opsin")
    server = start(FakeEngine(Script(b"hello canary-out", cached=1)), api_keys=("canary-key",))
    messages = [{"role": "user", "content": "canary-in"}]
    client = server.client(api_key="canary-key")
    answer = client.chat.completions.create(
        model="opsin-test",
        messages=messages,
        stream=stream,
        user="canary-user",
        extra_headers={"x-request-id": "my-id"},
    )
    if stream:
        list(answer)
    wait_for(lambda: any(r.name == "opsin.access" for r in caplog.records))
    (record,) = [r for r in caplog.records if r.name == "opsin.access"]
    fields = dict(pair.split("=") for pair in record.getMessage().split())
    assert fields.pop("id") == "my-id"
    assert float(fields.pop("seconds")) >= float(fields.pop("first_token_seconds")) > 0
    assert fields == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": "200",
        "end": "stop",
        "model": "opsin-test",
        "version": "v1-test",
        "prompt_tokens": "9",
        "completion_tokens": "16",
        "cached_tokens": "1",
        "queue_seconds": "0.2500",
    }
    get(server, "/v1/canary-path?canary=query", "Authorization: Bearer canary-wrong\r\nX-Request-Id: a\tb\r\n")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="opsin-test", messages=[{"role": "canary", "content": "canary"}])
    parts = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/canary"}}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="opsin-test", messages=[{"role": "user", "content": parts}])
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="canary", messages=messages)
    wait_for(lambda: len([r for r in caplog.records if r.name == "opsin.access"]) == 5)
    assert "canary" not in caplog.text


def test_what_no_route_takes_is_a_refusal_in_the_log_as_well(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "opsin.access")
    server = start()
    assert get(server, "/v1/nothing")[0] == 404
    assert get(server, "/v1/chat/completions")[0] == 405
    wait_for(lambda: len(caplog.records) == 2)
    assert [re.findall(r"(?:status|end|code)=(\w+)", record.getMessage()) for record in caplog.records] == [
        ["404", "refused", "unknown_url"],
        ["405", "refused", "method_not_allowed"],
    ]


def test_the_line_of_a_client_that_left(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "opsin")
    server = start(FakeEngine(Script(b"x", first_delay=5)))
    with server.connect() as raw:
        raw.sendall(post(CHAT))
        wait_for(lambda: len(server.engine.streams) == 1)
    wait_for(lambda: "end=disconnected" in caplog.text)
    assert "status=499" in caplog.text
    assert "Traceback" not in caplog.text


def test_unfinished_answers_are_not_logged_as_errors_of_uvicorn(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = start(FakeEngine(Script(b"hello", die_after=2)))
    with pytest.raises(openai.APIError):
        list(server.client().chat.completions.create(**CHAT, stream=True))
    wait_for(lambda: "end=failed" in caplog.text)
    time.sleep(0.05)
    assert "ASGI" not in caplog.text


# ------------------------------------------------------------------------------------------ floods of headers


def flood(server: Any, blocks: list[bytes]) -> tuple[int, bytes]:
    with server.connect() as raw:
        with suppress(OSError):  # it has hung up already
            for block in blocks:
                raw.sendall(block)
        return answer_of(raw)


def answer_of(raw: socket.socket) -> tuple[int, bytes]:
    """Status and body, which may come in pieces; the connection stays open."""
    response = HTTPResponse(raw)
    response.begin()
    return response.status, response.read()


HEAD = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "blocks",
    [
        [HEAD + b"X: a\r\n" * 100 + b"\r\n"],
        [HEAD + b"X: " + b"a" * 2**20] + [b"a" * 2**20] * 19 + [b"\r\n\r\n"],
        [HEAD + b"".join(b"X%d: a\r\n" % i for i in range(20_000)) + b"\r\n"],
        [HEAD + b"X: a\r\n" * 20_000 + b"\r\n"],
        [HEAD + b"".join(b"X%d: a\r\n" % i for i in range(6_000)) + b"\r\n"],
        [b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
        [HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n"],
    ],
    ids=["101", "20 MB", "20,000", "20,000 alike", "6,000", "a long path", "200 KB"],
)
def test_header_floods_get_a_4xx_in_bounded_memory(plain: Any, blocks: list[bytes]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, body = flood(plain, blocks)
    assert 400 <= status < 500
    assert json.loads(body)["error"]["message"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB
    assert get(plain, "/health/live")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_not_http_never_gets_a_5xx(plain: Any, data: bytes) -> None:
    with plain.connect() as raw:
        raw.sendall(data)
        answer = raw.recv(65536)
    assert re.match(rb"HTTP/1.1 (4\d\d|501)", answer), answer[:200]
    assert get(plain, "/health/live")[0] == 200


def test_a_head_that_does_not_come_is_not_waited_for(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.api.listener.HEAD_SECONDS", 0.2)
    server = start()
    with server.connect() as nothing, server.connect() as part:
        part.sendall(HEAD)
        assert [raw.recv(65536) for raw in (nothing, part)] == [b"", b""]


def test_a_later_head_is_not_waited_for_and_work_and_rest_are_no_waiting(start: Any) -> None:
    """Looked at by hand: a client that is held up by its machine would seem to wait."""
    done = threading.Event()
    server = start(FakeEngine(Script(b"x", held=done)))

    def connections() -> list[Protocol]:
        return list(server.server.server_state.connections)

    with server.connect() as later, server.connect() as idle, server.connect() as works:
        for raw in (later, idle):
            raw.sendall(HEAD + b"\r\n")
            assert answer_of(raw)[0] == 200
        works.sendall(post(CHAT))
        later.sendall(HEAD)
        wait_for(lambda: server.call(lambda: [c.timeout_keep_alive_task for c in connections()].count(None)) == 2)
        for _ in range(2):
            server.call(lambda: [connection._check_head() for connection in connections()])
        assert later.recv(65536) == b""
        done.set()
        assert answer_of(works)[0] == 200
        idle.sendall(HEAD + b"\r\n")
        assert answer_of(idle)[0] == 200


# --------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process_in_order(number: signal.Signals) -> None:
    """A stream under a real signal is finished, then the process leaves with 0."""
    program = Path(__file__).parent / "signal_server.py"
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=dispositions(),
    )
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        http = openai.DefaultHttpxClient(trust_env=False)
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, http_client=http)
        stream = iter(client.chat.completions.create(**CHAT, stream=True))
        text = next(stream).choices[0].delta.content
        process.send_signal(number)
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "x" * 40
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
