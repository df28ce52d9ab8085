"""What is known of one HTTP request: its id, what is counted and measured of it, and the line it leaves in the log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opsin_server.api.middleware.anthropic import speaks_anthropic
from opsin_server.api.middleware.paths import PROBES
from opsin_server.api.token_usage import TokenUsage
from opsin_server.metrics import Metrics

log = logging.getLogger("opsin.access")

CLIENT_GONE = 499  # nginx's number for an answer that nobody waited for; only in logs and metrics

FREQUENT = PROBES | {"/metrics"}  # asked every few seconds: their lines are for debugging

_WORD = re.compile(r'[^\s="]+')
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class RequestLog:
    """Filled by those who know: this middleware, the place where errors become responses, the chat route.

    end: what came instead of an orderly end; without one, why the answer finished. model, usage: of a request that
    asked for an answer. adapter: the version that answers, as NAME@v1. code: the error's, as its body has it.
    """

    id: str
    method: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0  # 0: no response has been started
    route: str = "other"
    end: str | None = None
    code: str | None = None
    model: str | None = None
    adapter: str | None = None
    usage: TokenUsage = field(default_factory=TokenUsage)

    def seconds(self) -> float:
        return time.perf_counter() - self.started


class RequestLogMiddleware:
    """Outermost: whatever happens inside, the request is counted and logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics, version: str) -> None:
        self._app, self._metrics, self._version = app, metrics, version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = scope["opsin.request"] = RequestLog(request_id(scope), scope["method"])

        async def send_tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                milliseconds = str(round(request.seconds() * 1000))
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request.id.encode()),
                    (b"openai-processing-ms", milliseconds.encode()),
                ]
                if speaks_anthropic(scope):
                    message["headers"].append((b"request-id", request.id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_tagged)
        finally:
            request.route = getattr(scope.get("route"), "path", "other")
            self._record(request)

    def _record(self, request: RequestLog) -> None:
        seconds = request.seconds()
        self._metrics.answered(request.route, request.status or CLIENT_GONE, seconds)
        if request.end == "failed":
            self._metrics.broken.inc()
        if request.model is not None:
            self._metrics.prompt_tokens.inc(request.usage.prompt_tokens)
            self._metrics.image_tokens.inc(request.usage.image_tokens)
            self._metrics.generation_tokens.inc(request.usage.completion_tokens)
        log.log(logging.DEBUG if request.route in FREQUENT else logging.INFO, line(request, self._version, seconds))


def request_id(scope: Scope) -> str:
    """The client's own when it is sane; it is only ever shown, never a key to anything."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return value.decode()
    return f"req_{secrets.token_hex(12)}"


def line(request: RequestLog, version: str, seconds: float) -> str:
    """key=value, without what the client wrote but for its own id: no prompt, no key, no URL."""
    parts: list[tuple[str, object]] = [
        ("id", request.id),
        ("method", request.method if request.method.isalpha() else "other"),
        ("route", request.route),
        ("status", request.status or CLIENT_GONE),
        ("end", request.end or request.usage.finish or "answered"),
        ("seconds", f"{seconds:.4f}"),
    ]
    if request.code is not None:
        parts.append(("code", request.code))
    if request.model is not None:
        usage = request.usage
        parts += [
            ("model", request.model),
            ("version", version),
            *((("adapter", request.adapter),) if request.adapter is not None else ()),
            ("prompt_tokens", usage.prompt_tokens),
            ("completion_tokens", usage.completion_tokens),
            ("cached_tokens", usage.cached_tokens),
            ("queue_seconds", _brief(usage.queue_seconds)),
            ("first_token_seconds", _brief(usage.first_token_seconds)),
        ]
    return " ".join(f"{key}={_one_word(str(value))}" for key, value in parts)


def _one_word(text: str) -> str:
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _brief(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.4f}"
