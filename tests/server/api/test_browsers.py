"""A page of another origin may ask this server where the operator has named its origin, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, Script
from running_server import RunningServer
from test_addresses import ask

from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import ConfigError

KEY, PAGE, EVIL = "sk-secret-of-this-test", "https://app.example.com", "https://evil.test"
CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}]}
BEARER = f"Authorization: Bearer {KEY}\r\n"
PREFLIGHT = (
    "Access-Control-Request-Method: POST\r\n"
    "Access-Control-Request-Headers: authorization,content-type,x-stainless-arch,x-stainless-retry-count\r\n"
)


def preflight(server: Any, origin: str, path: str = "/v1/chat/completions", more: str = PREFLIGHT) -> Any:
    return ask(server, "OPTIONS", path, f"Origin: {origin}\r\n{more}")


@pytest.fixture(scope="module")
def opened() -> Iterator[RunningServer]:
    server = RunningServer(
        FakeEngine(Script(b"hello")), api_keys=(KEY,), allow_origins=(PAGE, "http://localhost:3000", "null")
    )
    yield server
    server.close()


def allowed(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_without_the_flag_nothing_is_said_to_other_origins(start: Any) -> None:
    server = start(api_keys=(KEY,))
    for headers, status in (("", 401), (BEARER, 405)):
        got, said, _ = preflight(server, PAGE, more=PREFLIGHT + headers)
        assert (got, allowed(said)) == (status, {})
    status, said, _ = ask(server, "POST", "/v1/chat/completions", f"Origin: {PAGE}\r\n{BEARER}", CHAT)
    assert (status, allowed(said)) == (200, {})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "//openai/v1/chat/completions", "/metrics"])
def test_a_preflight_needs_no_key(opened: RunningServer, path: str) -> None:
    for origin in (PAGE, "http://localhost:3000", "null"):
        status, headers, _ = preflight(opened, origin, path)
        assert status == 200
        assert headers["access-control-allow-origin"] == origin
        assert {"get", "post"} <= set(headers["access-control-allow-methods"].split(", "))
        assert {"authorization", "x-stainless-arch"} <= set(headers["access-control-allow-headers"].split(","))
        assert "access-control-allow-credentials" not in headers
        assert "origin" in headers["vary"]
        assert headers["x-request-id"]


def test_a_page_may_ask_into_a_private_network_when_it_is_named(opened: RunningServer) -> None:
    more = PREFLIGHT + "Access-Control-Request-Private-Network: true\r\n"
    status, headers, _ = preflight(opened, PAGE, more=more)
    assert (status, headers["access-control-allow-private-network"]) == (200, "true")
    status, headers, _ = preflight(opened, EVIL, more=more)
    assert (status, headers.get("access-control-allow-origin")) == (400, None)


@pytest.mark.parametrize("origin", [EVIL, PAGE + ".evil.test", PAGE + ":8443", "http://app.example.com", PAGE.upper()])
def test_other_origins_are_told_nothing(opened: RunningServer, origin: str) -> None:
    status, headers, _ = preflight(opened, origin)
    assert (status, headers.get("access-control-allow-origin")) == (400, None)
    status, headers, _ = ask(opened, "POST", "/v1/chat/completions", f"Origin: {origin}\r\n{BEARER}", CHAT)
    assert (status, headers.get("access-control-allow-origin")) == (200, None)
    status, headers, _ = ask(opened, "POST", "/v1/chat/completions", f"Origin: {origin}\r\n", CHAT)
    assert (status, headers.get("access-control-allow-origin")) == (401, None)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/v1/chat/completions", BEARER, CHAT, 200),
        ("POST", "/v1/chat/completions", BEARER, {**CHAT, "stream": True}, 200),
        ("GET", "/v1/models", BEARER, None, 200),
        ("HEAD", "/v1/models", BEARER, None, 200),
        ("POST", "/v1/chat/completions", BEARER, {**CHAT, "verbosity": "low"}, 400),
        ("POST", "/v1/chat/completions", "", CHAT, 401),
        ("GET", "/nothing", BEARER, None, 404),
        ("GET", "/v1/chat/completions", BEARER, None, 405),
        ("GET", "/v1/models", BEARER + "X: a\r\n" * 100, None, 431),
    ],
)
def test_answers_and_refusals_can_be_read(
    opened: RunningServer, method: str, path: str, headers: str, body: Any, status: int
) -> None:
    got, said, _ = ask(opened, method, path, f"Origin: {PAGE}\r\n{headers}", body)
    assert (got, said["access-control-allow-origin"]) == (status, PAGE)
    assert {"x-request-id", "retry-after"} <= set(said["access-control-expose-headers"].split(", "))
    assert "origin" in said["vary"]


def test_no_key_is_skipped_for_what_only_looks_like_a_preflight(opened: RunningServer) -> None:
    assert ask(opened, "OPTIONS", "/v1/models", f"Origin: {PAGE}\r\n")[0] == 401
    assert ask(opened, "OPTIONS", "/v1/models", "Access-Control-Request-Method: GET\r\n")[0] == 401
    assert ask(opened, "GET", "/v1/models", f"Origin: {PAGE}\r\nAccess-Control-Request-Method: GET\r\n")[0] == 401


def test_every_origin_when_it_is_said(start: Any) -> None:
    server = start(allow_origins=("*",))
    assert preflight(server, EVIL)[1]["access-control-allow-origin"] == "*"
    assert ask(server, "GET", "/v1/models", f"Origin: {EVIL}\r\n")[1]["access-control-allow-origin"] == "*"


def config(**changes: Any) -> ServerConfig:
    return ServerConfig(EngineConfig("none"), **changes)


AS_BROWSERS_WRITE_THEM = [
    "*",
    "null",
    "https://app.example.com",
    "https://app.example.com:8443",
    "http://localhost:3000",
    "http://127.0.0.1",
    "http://[::1]:8080",
    "app://obsidian.md",
    "chrome-extension://abcdefghijklmnop",
]
AS_NO_BROWSER_DOES = [
    "",
    "app.example.com",
    "localhost:3000",
    "https://",
    "https://app.example.com/",
    "https://app.example.com/chat",
    "https://App.example.com",
    "https://app.example.com:443",
    "http://localhost:80",
    "https://*.example.com",
    "https://a.test,https://b.test",
    "https://user@app.example.com",
    "https://a.test?x",
    "https://a.test#x",
    "https://a b",
    "https://app.example.com\n",
]


@pytest.mark.parametrize("origin", AS_BROWSERS_WRITE_THEM)
def test_origins_as_browsers_write_them(origin: str) -> None:
    config(allow_origins=(origin,)).check()


@pytest.mark.parametrize("origin", AS_NO_BROWSER_DOES)
def test_what_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"^--allow-origin .* is no origin"):
        config(allow_origins=(origin,)).check()


@pytest.mark.parametrize("path", ["", "/llm", "/a/b-1"])
def test_a_root_path(path: str) -> None:
    config(root_path=path).check()


@pytest.mark.parametrize("path", ["llm", "/", "/llm/", "//llm", "/a//b", "/a b", "/ä", "/a?b", "/%61", "/llm\n"])
def test_what_is_no_root_path(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^--root-path .* is no path"):
        config(root_path=path).check()
