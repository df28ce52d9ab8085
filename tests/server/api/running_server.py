"""A real server on a loopback port, in a thread of its own, in front of a fake engine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import openai
import uvloop
from fake_encoder import FakeEmbedder, FakeEncoder
from fake_engine import FakeEngine

from opsin_server.api.app import create_app
from opsin_server.api.listen_addresses import addresses, bind
from opsin_server.api.listener import Server
from opsin_server.config import EngineConfig, ServerConfig
from support.fake_services import fake_services
from support.served import PLAIN

NAMES = ("opsin-test", "gpt-4o-2024-08-06")


def config(**changes: Any) -> ServerConfig:
    return msgspec.structs.replace(ServerConfig(EngineConfig("none"), port=0, drain_timeout=30.0), **changes)


class RunningServer:
    def __init__(
        self,
        engine: FakeEngine,
        encoder: Any = None,
        sampling: Any = None,
        files: Any = None,
        webhooks: Any = None,
        batches: Any = None,
        answers: Any = None,
        **changes: Any,
    ) -> None:
        self.engine = engine
        self.digest: str | None = None
        self.config = config(**changes)
        services = fake_services(
            self.config,
            engine,
            encoder or FakeEncoder(),
            FakeEmbedder(),
            NAMES,
            sampling=sampling,
            files=files,
            webhooks=webhooks,
            batches=batches,
            answers=answers,
            digest=lambda: self.digest,
        )
        self.app = create_app(services)
        self.loop = uvloop.new_event_loop()
        self.url = ""
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server under test", daemon=True)
        self._thread.start()
        assert self._started.wait(60)
        self.port = int(self.url.rsplit(":", 1)[1])

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        def started(url: str) -> None:
            self.url = url
            self._started.set()

        self.server = Server(self.app, self.config, bind(addresses(self.config.host), 0), started)
        await self.server.serve_until_stopped()
        await self.services.grammars.close()
        self.services.threads.shutdown(wait=False, cancel_futures=True)

    @property
    def services(self) -> Any:
        return self.app.state.services

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs in the server's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60.0, **options}
        http = openai.DefaultHttpxClient(base_url=self.url + "/v1", **PLAIN)
        return openai.OpenAI(base_url=self.url + "/v1", http_client=http, **options)

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60.0, **options}
        http = openai.DefaultAsyncHttpxClient(base_url=self.url + "/v1", **PLAIN)
        return openai.AsyncOpenAI(base_url=self.url + "/v1", http_client=http, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self) -> None:
        """The first is a SIGTERM's."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not end"

    def close(self) -> None:
        """Nothing is in flight, and nothing is left running."""
        wait_for(lambda: len(self.services.admission) == 0)
        self.stop()
        self.join()


def wait_for(condition: Callable[[], bool]) -> None:
    """As long as a busy machine may take: how long it took is not measured."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.002)


def post(body: Any, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    return (head + f"Content-Type: application/json\r\n{headers}\r\n").encode() + data


def read_all(raw: Any) -> bytes:
    data = b""
    while block := raw.recv(65536):
        data += block
    return data
