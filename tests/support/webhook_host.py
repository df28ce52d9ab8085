"""Somebody's web server for webhooks, on a loopback port, which keeps what it was sent and answers as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookHost:
    """statuses: of the next answers; when there are none left, 200."""

    port: int
    statuses: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        end = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < end, f"{len(self.received)} of {count} deliveries came"
            time.sleep(0.02)
        return self.received


@contextmanager
def webhook_host() -> Iterator[WebhookHost]:
    found: list[WebhookHost] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            host = found[0]
            body = self.rfile.read(int(self.headers["content-length"]))
            host.received.append(Received(self.path, dict(self.headers.items()), body))
            self.send_response(host.statuses.pop(0) if host.statuses else 200)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        log_message: Callable[..., Any] = staticmethod(lambda *given: None)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.append(WebhookHost(server.server_address[1]))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found[0]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
