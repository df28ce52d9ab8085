"""The one place where exceptions become answers, in OpenAI's shape, or in Anthropic's for its clients."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opsin_server.api.admission import Draining
from opsin_server.api.cancellation import ClientGone
from opsin_server.api.middleware import anthropic
from opsin_server.errors import BadRequest, OpsinError, Unauthorized, Unavailable

log = logging.getLogger("opsin.errors")

RETRY_AFTER_SECONDS = "2"  # a restart of the engine, or the end of a few of the requests ahead


class ErrorResponsesMiddleware:
    """Answers what is raised anywhere inside. After the first byte nothing can be answered: the response is left
    unfinished, and uvicorn closes the connection without the end that a client would take for success."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientGone:
            scope["opsin.request"].end = "disconnected"
        except Exception as failure:
            if scope["type"] != "http":
                raise
            known = known_error(failure, scope)
            scope["opsin.request"].end, scope["opsin.request"].code = "failed" if started else "refused", known.code
            if not started:
                await response(known, scope)(scope, receive, send)


async def leave(request: Request, failure: Exception) -> Response:
    """To the middleware above: FastAPI would otherwise answer it in its own shape."""
    raise failure


def known_error(failure: Exception, scope: Scope) -> OpsinError:
    """What the client hears of it. Of an unknown one, a bug, it hears nothing, and the log has no message of it
    either, which could hold a prompt: only where it happened."""
    if isinstance(failure, OpsinError):
        return failure
    if isinstance(failure, HTTPException):
        return _http_error(failure, scope)
    name = type(failure).__name__
    log.error(
        "id=%s error=%s\n%s", scope["opsin.request"].id, name, "".join(traceback.format_tb(failure.__traceback__))
    )
    log.debug("the message of %s", name, exc_info=failure)
    return OpsinError("The server could not answer this request: an error of its own, which it has logged")


def _allowed(scope: Scope) -> list[str]:
    """The methods of all routes that have the path. (Starlette names those of the first.)"""
    routes = [leaf for route in scope["app"].router.routes for leaf in _leaves(route)]
    matching = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in route.methods or ()})


def _leaves(route: Any) -> list[Any]:
    """FastAPI keeps what was included in a router of its own."""
    return route.original_router.routes if hasattr(route, "original_router") else [route]


def _http_error(failure: HTTPException, scope: Scope) -> OpsinError:
    method, path = scope["method"], scope["path"][:200]
    if failure.status_code == 404:
        return _shaped(404, f"Unknown request URL: {method} {path}", "unknown_url")
    if failure.status_code == 405:
        allowed = _allowed(scope)
        return MethodNotAllowed(f"{path} takes {' and '.join(allowed)}, not {method}", allowed)
    return _shaped(failure.status_code, str(failure.detail), None)


class MethodNotAllowed(BadRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = allowed


def _shaped(status: int, message: str, code: str | None) -> OpsinError:
    error = BadRequest(message, code=code)
    error.status = status
    return error


def body(error: OpsinError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def response(error: OpsinError, scope: Scope) -> Response:
    headers = {}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["retry-after"] = RETRY_AFTER_SECONDS
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if isinstance(error, Draining):
        headers["connection"] = "close"
    said = anthropic.error_body(error, scope["opsin.request"].id) if anthropic.speaks_anthropic(scope) else body(error)
    return Response(msgspec.json.encode(said), error.status, headers, "application/json")
