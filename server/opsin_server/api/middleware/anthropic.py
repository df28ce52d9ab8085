"""Whom Anthropic's forms are for, and errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from opsin_server.errors import OpsinError

PATHS = ("/messages", "/messages/count_tokens")
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


def error_body(error: OpsinError, request_id: str) -> dict[str, Any]:
    """Anthropic's errors have no field for the parameter at fault: the message names it."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    named = error.param is None or error.param in error.message
    message = error.message if named else f"{error.param}: {error.message}"
    said: dict[str, Any] = {"type": kind, "message": message}
    if error.param == "thread":  # at which the SDK sends the whole conversation instead
        said["details"] = {"error_code": "thread_unsupported_request"}
    return {"type": "error", "error": said, "request_id": request_id}
