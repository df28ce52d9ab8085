"""API keys: every route but the two health checks needs one, where any is set."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from opsin_server.errors import Unauthorized

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})


class AuthMiddleware:
    """Reads scope["path"], never the URL, which a Host header can rewrite. Unknown paths are guarded too."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and self._digests and scope["path"] not in OPEN_PATHS:
            self._check(given_key(scope))
        await self._app(scope, receive, send)

    def _check(self, key: bytes | None) -> None:
        if key is None:
            raise Unauthorized("No API key was given: send it as 'Authorization: Bearer KEY'")
        digest = sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # every one, in equal time
        if not any(matches):
            raise Unauthorized("The API key is not one of this server's")


def given_key(scope: Scope) -> bytes | None:
    """From `Authorization: Bearer`, or from `api-key`, which clients of Azure send. The first header counts."""
    for name, value in scope["headers"]:
        if name == b"api-key":
            return bytes(value)
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return bytes(key.strip()) if scheme.lower() == b"bearer" else None
    return None
