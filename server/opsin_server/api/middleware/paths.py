"""Which route a request's path stands for. The guard of the keys and the router read the same, changed, path."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

# Probes, which need no key. The plain names are asked by load balancers (nginx, HAProxy, Google's and Amazon's, and
# SageMaker's /ping) that want to know where to send work: they mean "ready". Kubernetes asks /healthz and /livez to
# decide about a restart, which must not happen to a server that is loading or draining: they mean "live".
LIVE = ("/health/live", "/healthz", "/livez")
READY = ("/health/ready", "/health", "/readyz", "/ping")
PROBES = frozenset({*LIVE, *READY})

READ = ["GET", "HEAD"]  # of every route that only tells: HEAD is answered as GET is, without the body

OPENAI = "/openai"  # Azure's and others' word in front of OpenAI's routes

_HOST = re.compile("^https?://[^/]*", re.IGNORECASE)
_SLASHES = re.compile("//+")


class PathMiddleware:
    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._prefixes = app, [prefix for prefix in (root_path, OPENAI) if prefix]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["path"] = route_path(scope["path"], self._prefixes)
        await self._app(scope, receive, send)


def route_path(path: str, prefixes: list[str]) -> str:
    """Without scheme and host, which a client may write in front as to a proxy (RFC 9112, 3.2.2), without double and
    trailing slashes, as they come from bases that are joined with a path, and without each of the prefixes once, in
    their order: a proxy may have taken the first away, or not."""
    path = _SLASHES.sub("/", _HOST.sub("", path)).rstrip("/")
    for prefix in prefixes:
        if path == prefix or path.startswith(prefix + "/"):
            path = path[len(prefix) :]
    return path or "/"
