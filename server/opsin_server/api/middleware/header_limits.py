"""The bounds of a request's head. uvicorn's own limit holds only for a head that comes in several reads."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from opsin_server.errors import OpsinError

MAX_HEADERS = 100
MAX_BYTES = 64 * 1024


class HeadersTooLarge(OpsinError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class HeaderLimitsMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            check(scope)
        await self._app(scope, receive, send)


def check(scope: Scope) -> None:
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"The request has {len(headers)} headers; the limit is {MAX_HEADERS}")
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
    if size > MAX_BYTES:
        raise HeadersTooLarge(f"The request's address and headers have {size} bytes; the limit is {MAX_BYTES}")
