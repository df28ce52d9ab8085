"""Engines and servers that are killed or hang."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import httpx
import openai
import pytest

from support.served import Served, alive, wait_for
from support.served_checks import sentence, works
from support.slow_steps import slow_steps
from support.streams import RawReader, Reader, all_under_way

GENEROUS = 90.0  # seconds for what takes one on a machine that does nothing else


def test_an_engine_killed_under_load_is_an_error_for_each_request_and_starts_again(tmp_path):
    with Served(env=slow_steps(tmp_path)) as server:
        client = server.client()
        streams = [Reader(client, n) for n in range(3)]
        raw = [RawReader(server.url, n) for n in range(3, 6)]
        whole = [Reader(client, n, stream=False) for n in (6, 7)]
        all_under_way([*streams, *raw])
        wait_for(lambda: server.running() == 8)
        engine = server.engine
        os.kill(engine, signal.SIGKILL)
        for reader in streams:
            assert isinstance(reader.end().error, openai.APIError), "the end of the stream looked like success"
            assert reader.finish is None
            assert str(reader.error)
        for reader in raw:
            assert not reader.end().clean
            assert "[DONE]" not in reader.text
            assert json.loads(reader.text.strip().rpartition("data: ")[2])["error"]["type"] == "server_error"
        for reader in whole:
            assert isinstance(reader.end().error, openai.InternalServerError)
            assert reader.error.code == "engine_failed"
        assert server.get("/health/live").status_code == 200
        _restarted(server, engine)
        assert re.search(r"^(WARNING|ERROR) opsin\S* .*engine", server.stderr, re.MULTILINE), (
            "the log says nothing of it"
        )
        found = server.metrics()
        assert found['opsin_engine_restarts_total{engine="0"}'] == 1
        assert found['opsin_requests_total{route="/v1/chat/completions",status="500"}'] == 2
        assert found["opsin_requests_broken_total"] == 6

        engine = server.engine
        os.kill(engine, signal.SIGKILL)  # now with nothing to do
        _restarted(server, engine)
        assert server.metrics()['opsin_engine_restarts_total{engine="0"}'] == 2
        server.close()


def _restarted(server: Served, dead: int) -> None:
    """Readiness tells it, a patient client need not know of it, and the dead engine's folder is gone."""
    wait_for(lambda: server.children() != [dead], GENEROUS)
    works(server, max_retries=30)
    wait_for(server.is_ready, GENEROUS)
    server.wait_idle()
    assert server.engine != dead
    assert len([name for name in server.room.sockets() if name.count("/") == 1]) == 1


def test_an_engine_killed_while_it_loads_stops_the_server_with_a_sentence():
    with Served(ready=False) as server:
        wait_for(server.children, 60)
        time.sleep(0.5)
        os.kill(server.engine, signal.SIGKILL)
        assert "engine" in sentence(server)


def test_a_server_killed_takes_its_engine_along(tmp_path):
    with Served(env=slow_steps(tmp_path)) as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        engine = server.engine
        server.signal(signal.SIGKILL)
        start = time.monotonic()
        server.process.wait(GENEROUS)
        wait_for(lambda: not alive(engine), GENEROUS, "the engine is still there")
        print(f"the engine left after {time.monotonic() - start:.2f} s")
        assert isinstance(reader.end().error, openai.APIError | httpx.HTTPError)


@pytest.mark.nightly
def test_an_engine_that_hangs_does_not_keep_the_server_from_ending(record_property):
    with Served("--drain-timeout", "1") as server:
        reader = Reader(server.client(), 0)
        all_under_way([reader])
        os.kill(server.engine, signal.SIGSTOP)
        wait_for(lambda: not server.is_ready(), 60, "an engine that says nothing counts as ready")
        server.signal(signal.SIGTERM)
        start = time.monotonic()
        assert isinstance(reader.end().error, openai.APIError)
        assert server.wait() == 0
        assert server.room.left() == []
        record_property("result", f"ended {time.monotonic() - start:.1f} s after SIGTERM, --drain-timeout 1")
