"""API keys: every route but the probes and the playground's files needs one, where any is set."""

from __future__ import annotations

import hmac
from collections.abc import Container, Iterator, Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from opsin_server.errors import Unauthorized


class AuthMiddleware:
    """Reads scope["path"], never the URL, which a Host header can rewrite. Unknown paths are guarded too. open_paths:
    those that need no key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Container[str]) -> None:
        self._app, self._open = app, open_paths
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and self._digests and scope["path"] not in self._open:
            self._check(list(given_keys(scope)))
        await self._app(scope, receive, send)

    def _check(self, keys: Sequence[bytes]) -> None:
        """One right key is enough. Every given one is compared with every known one, in equal time."""
        if not keys:
            raise Unauthorized("No API key was given: send it as 'Authorization: Bearer KEY'")
        digests = [sha256(key).digest() for key in keys]
        matches = [hmac.compare_digest(digest, known) for digest in digests for known in self._digests]
        if not any(matches):
            raise Unauthorized("The API key is not one of this server's")


def given_keys(scope: Scope) -> Iterator[bytes]:
    """From `Authorization: Bearer`, `api-key` (Azure's clients) and `x-api-key` (gateways), however many there are: a
    proxy may have put credentials of its own before the client's."""
    for name, value in scope["headers"]:
        key = value
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        elif name not in (b"api-key", b"x-api-key"):
            continue
        if key := key.strip():
            yield bytes(key)
