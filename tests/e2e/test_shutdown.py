"""A server that is told to stop: by SIGTERM, Ctrl-C or its terminal, while it answers and while it loads."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import openai
import pytest

from support.served import Served, wait_for
from support.served_checks import works
from support.slow_steps import slow_steps
from support.streams import RawReader, Reader, all_under_way
from support.talk import MODEL_NAME, user

GENEROUS = 90.0  # seconds for what takes one on a machine that does nothing else
KEYS = ("first-key", "second-key")


def test_sigterm_lets_six_streams_finish():
    """Readiness fails, new work gets 503, nothing is cut, the exit code is 0 and no process or file is left."""
    with Served("--api-key", KEYS[0], "--api-key", KEYS[1], "--drain-timeout", "300") as server:
        _keys_guard_everything_but_health(server)
        client = server.client(api_key=KEYS[1])
        sdk = [Reader(client, n) for n in range(3)]
        raw = [RawReader(server.url, n, {"Authorization": f"Bearer {KEYS[0]}"}) for n in range(3, 6)]
        all_under_way([*sdk, *raw])
        engine = server.engine
        os.kill(engine, signal.SIGSTOP)  # so that they are not over before it has been looked at
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health/live").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model=MODEL_NAME, messages=[user("Hello")])
        assert (refused.value.status_code, refused.value.code) == (503, "draining")
        assert float(refused.value.response.headers["retry-after"]) >= 1
        assert all(reader.is_alive() for reader in (*sdk, *raw)), "the streams were over too early to tell"
        os.kill(engine, signal.SIGCONT)
        for reader in sdk:
            assert (reader.end().error, reader.finish) == (None, "length")
        for reader in raw:
            assert (reader.end().error, reader.clean) == (None, True)
            assert reader.text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"length"' in reader.text
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def _keys_guard_everything_but_health(server: Served) -> None:
    for path in ("/health/live", "/health/ready"):
        assert server.get(path).status_code == 200
    for path in ("/v1/models", "/models", f"/v1/models/{MODEL_NAME}", "/metrics", "/version", "/", "/docs", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEYS[0]}"}):
            answer = server.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    for key in ("none", KEYS[0] + "y", KEYS[0][:-1], KEYS[0].upper(), f"{KEYS[0]},{KEYS[1]}"):
        with pytest.raises(openai.AuthenticationError) as refused:
            server.client(api_key=key).chat.completions.create(model=MODEL_NAME, messages=[user("Hello")])
        assert refused.value.code == "invalid_api_key"
        assert KEYS[0] not in refused.value.message
    for key in KEYS:
        works(server, api_key=key)
    assert not any(key in server.stderr for key in KEYS)


def test_a_drain_timeout_ends_streams_with_an_error_and_not_as_if_they_were_complete(tmp_path):
    with Served("--drain-timeout", "0.5", env=slow_steps(tmp_path)) as server:
        sdk = [Reader(server.client(), n) for n in range(3)]
        raw = [RawReader(server.url, n) for n in range(3, 6)]
        whole = Reader(server.client(), 6, stream=False)
        all_under_way([*sdk, *raw])
        assert whole.is_alive()
        server.signal(signal.SIGTERM)
        for reader in sdk:
            assert isinstance(reader.end().error, openai.APIError), reader.finish
            assert "stopped before" in str(reader.error)
            assert reader.finish is None
        for reader in raw:
            assert not reader.end().clean
            assert "[DONE]" not in reader.text
            assert json.loads(reader.text.strip().rpartition("data: ")[2])["error"]["message"]
        assert isinstance(whole.end().error, openai.InternalServerError)
        assert whole.error.status_code == 503
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def test_a_second_sigterm_ends_it_at_once_and_more_of_them_spoil_nothing(tmp_path):
    """Who is impatient goes on pressing Ctrl-C, also while the engine is being stopped."""
    with Served("--drain-timeout", "300", env=slow_steps(tmp_path)) as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        server.signal(signal.SIGTERM)
        wait_for(lambda: not server.is_ready())
        assert reader.is_alive()
        server.signal(signal.SIGTERM)
        assert isinstance(reader.end().error, openai.APIError)
        while server.process.poll() is None:
            server.signal(signal.SIGTERM)
            time.sleep(0.1)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


@pytest.mark.parametrize("how", ["Ctrl-C in a terminal", "systemd stop"])
def test_a_signal_to_all_processes_drains_too(how):
    """A terminal sends Ctrl-C to every process of the job, systemd SIGTERM to every process of the service."""
    with Served("--drain-timeout", "300") as server:
        readers = [Reader(server.client(), n, tokens=700) for n in range(2)]
        all_under_way(readers)
        if how == "systemd stop":
            server.signal_all(signal.SIGTERM)
        else:
            server.signal_job(signal.SIGINT)
        for reader in readers:
            assert (reader.end().error, reader.finish) == (None, "length")
        assert server.wait() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


def test_a_signal_that_was_ignored_at_the_start_stays_ignored():
    """`nohup opsin serve &`, and what a script starts with `&`: in both processes, and in an engine started again."""
    with Served(ignored=(signal.SIGHUP, signal.SIGINT)) as server:
        for number in (signal.SIGHUP, signal.SIGINT):
            server.signal_job(number)
            server.signal_all(number)
        engine = server.engine
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: [pid for pid in server.children() if pid != engine and os.getsid(pid) == pid], GENEROUS)
        server.signal_job(signal.SIGHUP)  # (Python itself may not have started yet in the new one)
        wait_for(server.is_ready, GENEROUS)
        works(server)
        assert server.metrics()['opsin_engine_restarts_total{engine="0"}'] == 1, server.stderr
        server.close()


def test_a_terminal_that_closes_ends_its_server_in_order():
    with Served("--drain-timeout", "300") as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        server.signal_job(signal.SIGHUP)
        assert (reader.end().error, reader.finish) == (None, "length")
        assert server.wait() == 0
        assert server.room.left() == []


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_sigterm_while_it_loads(seconds):
    with Served(ready=False) as server:
        time.sleep(seconds)
        server.signal(signal.SIGTERM)
        code = server.wait()
        assert code in (0, -signal.SIGTERM)  # (Python itself may not have started yet)
        assert "Traceback" not in server.stderr, server.stderr
        assert server.room.left() == []


SLOW_NAMES = """
import socket, time

real = socket.getaddrinfo

def slow(host, *arguments, **options):
    if host == "slow.test":
        time.sleep(600)
    return real(host, *arguments, **options)

socket.getaddrinfo = slow
"""


def test_a_name_server_that_does_not_answer_does_not_keep_it_from_ending(tmp_path):
    """The C library's lookup cannot be interrupted, and Python waits for its own threads when it ends."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_NAMES)
    with Served("--media-timeout", "0.5", env={"PYTHONPATH": str(tmp_path)}) as server:
        part = {"type": "image_url", "image_url": {"url": "http://slow.test/x.png"}}
        with pytest.raises(openai.BadRequestError, match="--media-timeout"):
            server.client().chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": [part]}])
        server.signal(signal.SIGTERM)
        assert server.wait(GENEROUS) == 0


@pytest.mark.nightly
def test_a_hundred_sigterms(record_property):
    """At random moments from start to work: nothing is cut that had begun, and nothing is left."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rng = random.Random(seed)
    cut, ends, seconds = [], [], []
    for i in range(100):
        with Served("--drain-timeout", "300", ready=False) as server:
            readers = []
            if i % 2:
                server.wait_announced()
                readers = [Reader(server.client(), n, stream=rng.random() < 0.7, tokens=100) for n in range(6)]
                time.sleep(rng.random() * 0.5)
            else:
                time.sleep(rng.random() * 6)
            server.signal(signal.SIGTERM)
            start = time.monotonic()
            for reader in readers:
                error = reader.end().error
                refused = isinstance(error, openai.InternalServerError) and error.code == "draining"
                if not refused and (error is not None or reader.finish != "length"):
                    cut.append(f"server {i}: {reader.finish} {error!r}")
            code = server.wait()
            seconds.append(time.monotonic() - start)
            if code not in (0, -signal.SIGTERM) or "Traceback" in server.stderr or server.room.left():
                ends.append(f"server {i}: {code} {server.room.left()} {server.stderr[-2000:]}")
    found = f"{len(cut)} answers cut, {len(ends)} ends that were not clean, slowest end {max(seconds):.1f} s"
    record_property("result", f"half of them under 6 requests: {found}; seed {seed}")
    print(*cut, *ends, sep="\n")
    assert not cut
    assert not ends
