"""Whom Anthropic's forms are for, what has none, and errors in Anthropic's shape."""

from __future__ import annotations

import re
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from opsin_server.errors import NotFound, OpsinError

PATHS = ("/messages", "/messages/count_tokens")
OPENAIS = re.compile(r"(/v1)?/files(/.*)?", re.DOTALL)  # where Anthropic's API has routes of another form
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",  # (Anthropic's own status is 529, which no load balancer knows)
}


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is of Anthropic's SDKs, or posts to a route of that API."""
    posts = scope["method"] == "POST" and scope["path"].endswith(PATHS)
    return posts or any(name == b"anthropic-version" for name, _ in scope["headers"])


class AnthropicFormMiddleware:
    """Anthropic's SDKs would take what a route of OpenAI's answers for the answer of their own at the same address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and OPENAIS.fullmatch(scope["path"]) and speaks_anthropic(scope):
            raise NotFound(
                f"{scope['method']} {scope['path'][:200]} is not served in the form of Anthropic's API; without the "
                "header 'anthropic-version' it is in OpenAI's",
                code="unknown_url",
            )
        await self._app(scope, receive, send)


def error_body(error: OpsinError, request_id: str) -> dict[str, Any]:
    """Anthropic's errors have no field for the parameter at fault: the message names it."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    named = error.param is None or error.param in error.message
    message = error.message if named else f"{error.param}: {error.message}"
    said: dict[str, Any] = {"type": kind, "message": message}
    if error.param == "thread":  # at which the SDK sends the whole conversation instead
        said["details"] = {"error_code": "thread_unsupported_request"}
    return {"type": "error", "error": said, "request_id": request_id}
