"""/playground: a page in the browser that asks this server's own API. Its files need no key; what it asks for does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from opsin_server.api.middleware.paths import READ
from opsin_server.errors import NotFound

router = APIRouter()

FOLDER = Path(__file__).parents[1] / "playground"
PAGE, PATH = "index.html", "/playground"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for anew each time, and sent when its ETag has changed
}


class Asset(NamedTuple):
    """A file of the page. tag: of its content, as ETag has it."""

    data: bytes
    kind: str
    tag: str


def _asset(data: bytes, suffix: str) -> Asset:
    return Asset(data, f"{TYPES[suffix]}; charset=utf-8", f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _read() -> dict[str, Asset]:
    """All of them, by name."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in TYPES)
    return {path.name: _asset(path.read_bytes(), path.suffix) for path in files}


ASSETS = _read()
PATHS = frozenset({PATH, *(f"{PATH}/{name}" for name in ASSETS)})
# Whoever asks for /playground/ stands one folder deeper: the addresses in the page are relative, since what a proxy
# puts in front of them is not always known here.
DEEPER = _asset(ASSETS[PAGE].data.replace(b'"playground/', b'"./'), ".html")


@router.api_route(PATH, methods=READ)
async def page(request: Request) -> Response:
    return _answer(DEEPER if request.scope["raw_path"].endswith(b"/") else ASSETS[PAGE], request)


@router.api_route(PATH + "/{name}", methods=READ)
async def file(name: str, request: Request) -> Response:
    if (found := ASSETS.get(name)) is None:
        raise NotFound(f"The playground has no file '{name[:100]}'", code="unknown_url")
    return _answer(found, request)


def _answer(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "etag": asset.tag}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, headers=headers, media_type=asset.kind)
