"""Every route but the probes and the playground's page needs the key, whatever the Host header says and however the
path is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, Script
from running_server import RunningServer, read_all

KEY = "sk-secret-of-this-test"
KEPT = re.compile(r"(/v1)?/(batches|files|uploads|fine_tuning|fine_tunes|fine-tunes|webhook_endpoints)\b")
PARAMETER = re.compile(r"\{\w+(:path)?\}")
OPEN = {"/health/live", "/health/ready", "/health", "/healthz", "/livez", "/readyz", "/ping", "/playground"}
HOSTS = [
    "x",
    "127.0.0.1",
    "x/health/live",
    "x/health/live?",
    "x#",
    "/health/live",
    "[::1",
    "x:0/health/live/..",
    "",
    "@health/live",
]
ODD_PATHS = [
    "/health/../v1/models",
    "//v1/models",
    "/v1/models/",
    "/health/live/../../metrics",
    "/health%2Flive/..%2f..%2fmetrics",
    "/health/live/v1/models",
    "/health/metrics",
    "/ping/../metrics",
    "//openai//v1/models//",
    "/openai/metrics",
    "/openai/health/live/../../metrics",
    "/health/live;/metrics",
    "/health/live%00",
    "/HEALTH",
    "/v1/models?/health/live",
    "/openapi.json",
    "/docs",
    "/playground/../v1/models",
    "/playground/app.js/../../metrics",
    "/playground/app.js%00",
    "/playground/..%2f..%2fapp.py",
    "/playgrounds",
    "http://x/metrics",
    "http://x/health/live/../../metrics",
    "http://health/live",
    "http:/health/live",
    "ftp://x/health/live",
    "/http://x/health/live",
    "http://x/http://x/health/live",
    "*",
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    server = RunningServer(FakeEngine(Script(b"hello")), api_keys=(KEY, "other"))
    yield server
    server.close()


def routes(server: RunningServer) -> list[tuple[str, str]]:
    leaves: list[Any] = []
    for route in server.app.router.routes:  # FastAPI keeps what was included in a router of its own
        leaves += route.original_router.routes if hasattr(route, "original_router") else [route]
    found = [(method, leaf.path) for leaf in leaves for method in leaf.methods]
    return sorted((method, PARAMETER.sub("opsin-test", path)) for method, path in found)


def status(server: RunningServer, method: str, path: str, host: str = "x", headers: str = "") -> int:
    with server.connect() as raw:
        raw.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n".encode("latin-1"))
        return int(read_all(raw).split(b" ")[1])


def test_all_routes_are_enumerated(guarded: RunningServer) -> None:
    paths = {path for _, path in routes(guarded)}
    assert {
        "/v1/chat/completions",
        "/chat/completions",
        "/v1/embeddings",
        "/v1/models",
        "/metrics",
        "/version",
        *OPEN,
    } <= paths
    assert len(paths) == 123


@pytest.mark.parametrize("host", HOSTS)
def test_no_route_answers_without_the_key(guarded: RunningServer, host: str) -> None:
    for method, path in routes(guarded):
        got = status(guarded, method, path, host)
        assert got == (200 if path in OPEN else 401) or (got == 400 and not host), (method, path)


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {KEY}x",
        f"Authorization: Bearer {KEY[:-1]}",
        f"Authorization: Basic {KEY}",
        f"Authorization: {KEY}",
        "Authorization: Bearer ",
        "Authorization: Bearer",
        "Authorization: ",
        "Authorization: Bearer \xff\xfe",
        f"X-Api-Key: {KEY}x",
        f"X-Api-Keys: {KEY}",
        f"api-key: {KEY.upper()}",
        "api-key: ",
        f"Cookie: api-key={KEY}",
        f"Authorization: Basic {KEY}\r\nAuthorization: Bearer wrong\r\napi-key:\r\nx-api-key: other2",
        f"Authorization: Bearer {KEY[:9]} {KEY[9:]}",
        f"Authorization: Bearer other {KEY}",
        f"Authorization: Bearer {KEY}, Bearer other",
    ],
)
def test_no_route_answers_to_a_wrong_key(guarded: RunningServer, header: str) -> None:
    for method, path in routes(guarded):
        if path not in OPEN:
            assert status(guarded, method, path, headers=header + "\r\n") == 401, (method, path)


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {KEY}",
        f"authorization: bEaReR  {KEY}",
        f"api-key: {KEY}",
        f"X-Api-Key: {KEY}",
        f"Authorization: Basic dXNlcjpwYXNz\r\nAuthorization: Bearer {KEY}",
        f"Authorization: Basic dXNlcjpwYXNz\r\napi-key: {KEY}",
        f"api-key:\r\nAuthorization: Bearer {KEY}",
        f"api-key: wrong\r\nx-api-key: wrong\r\nAuthorization: Bearer {KEY}",
        f"Authorization: Bearer none\r\napi-key: {KEY}",
        f"Authorization: Bearer wrong\r\nAuthorization: Bearer {KEY}",
        f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer wrong",
    ],
)
def test_every_route_answers_to_the_key(guarded: RunningServer, header: str) -> None:
    for method, path in routes(guarded):
        assert status(guarded, method, path, headers=header + "\r\n") in reached(method, path), (method, path)


def reached(method: str, path: str) -> set[int]:
    """There is no body, no adapter and no alias, nothing is kept, and the model itself cannot be deleted."""
    if KEPT.match(path) and not (path.endswith("/permissions") and method in ("GET", "HEAD")):  # of which are none
        return {400}
    if path == "/playground/opsin-test":  # no file of it
        return {404}
    if "/responses/opsin-test" in path:  # of which this server keeps none
        return {404}
    if path.startswith(("/v1/adapters/", "/v1/aliases/")):
        return {400, 404}
    return {200} if method in ("GET", "HEAD") else {400}


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD", "OPTIONS", "ROUTE", "get"])
def test_unknown_paths_are_guarded_too(guarded: RunningServer, method: str, path: str) -> None:
    assert status(guarded, method, path) in (400, 401)


def test_a_websocket_is_not_opened(guarded: RunningServer) -> None:
    headers = "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    assert status(guarded, "GET", "/v1/models", headers=headers) == 401


def test_without_keys_everything_is_open(plain: Any) -> None:
    for method, path in routes(plain):
        assert status(plain, method, path) in reached(method, path), (method, path)
