"""Cross-origin requests: pages of the origins that `--allow-origin` names may ask this server from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

EXPOSED = ("x-request-id", "openai-processing-ms", "retry-after")  # what the OpenAI SDK reads of an answer


class BrowserOriginsMiddleware(CORSMiddleware):
    """Outside of the keys and of the place where failures become answers: a preflight carries no key, and a page may
    read why it was refused. No credentials: a key travels in a header that the page's script sets, never in a cookie
    that a browser adds by itself. A page may ask a server in a private network, if its origin is named here."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )
