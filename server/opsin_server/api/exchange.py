"""One HTTP exchange: its id, what is measured of it, what is undone at its end, and the line it leaves in the log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opsin_server.api.paths import PROBES
from opsin_server.metrics import Metrics

log = logging.getLogger("opsin.access")

CLIENT_GONE = 499  # nginx's number for an answer that nobody waited for; only in logs and metrics

FREQUENT = PROBES | {"/metrics"}  # asked every few seconds: their lines are for debugging

_WORD = re.compile(r'[^\s="]+')
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """Filled by those who know: the middleware, the chat route, the reader of the engine's outputs."""

    id: str
    method: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0  # 0: no response has been started
    route: str = "other"
    end: str = "answered"  # or what came instead of an orderly end
    model: str | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    at_end: list[Callable[[], None]] = field(default_factory=list)

    def seconds(self) -> float:
        return time.perf_counter() - self.started


class ExchangeMiddleware:
    """Outermost: whatever happens inside, what was taken is given back, counted and logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics, version: str) -> None:
        self._app, self._metrics, self._version = app, metrics, version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope["opsin.exchange"] = Exchange(request_id(scope), scope["method"])

        async def send_tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                milliseconds = str(round(exchange.seconds() * 1000))
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", exchange.id.encode()),
                    (b"openai-processing-ms", milliseconds.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_tagged)
        finally:
            for undo in exchange.at_end:
                undo()
            exchange.route = getattr(scope.get("route"), "path", "other")
            self._record(exchange)

    def _record(self, exchange: Exchange) -> None:
        seconds = exchange.seconds()
        self._metrics.answered(exchange.route, exchange.status or CLIENT_GONE, seconds)
        if exchange.end == "failed":
            self._metrics.broken.inc()
        if exchange.model is not None:
            self._metrics.prompt_tokens.inc(exchange.prompt_tokens)
            self._metrics.image_tokens.inc(exchange.image_tokens)
            self._metrics.generation_tokens.inc(exchange.completion_tokens)
        log.log(logging.DEBUG if exchange.route in FREQUENT else logging.INFO, line(exchange, self._version, seconds))


def request_id(scope: Scope) -> str:
    """The client's own when it is sane; it is only ever shown, never a key to anything."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return value.decode()
    return f"req_{secrets.token_hex(12)}"


def line(exchange: Exchange, version: str, seconds: float) -> str:
    """key=value, without what the client wrote: no prompt, no key, no URL."""
    parts: list[tuple[str, object]] = [
        ("id", exchange.id),
        ("method", exchange.method if exchange.method.isalpha() else "other"),
        ("route", exchange.route),
        ("status", exchange.status or CLIENT_GONE),
        ("end", exchange.end),
        ("seconds", f"{seconds:.4f}"),
    ]
    if exchange.model is not None:
        parts += [
            ("model", exchange.model),
            ("version", version),
            ("prompt_tokens", exchange.prompt_tokens),
            ("completion_tokens", exchange.completion_tokens),
            ("cached_tokens", exchange.cached_tokens),
            ("queue_seconds", _brief(exchange.queue_seconds)),
            ("first_token_seconds", _brief(exchange.first_token_seconds)),
        ]
    return " ".join(f"{key}={_one_word(str(value))}" for key, value in parts)


def _one_word(text: str) -> str:
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _brief(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.4f}"
