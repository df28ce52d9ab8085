"""The addresses that clients, load balancers and proxies ask: aliases, slashes, prefixes, methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, read_all
from test_auth import routes

from opsin_server.api.middleware.paths import OPENAI, route_path

KEY = "sk-secret-of-this-test"
USER: list[Any] = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "opsin-test", "messages": USER}


def ask(server: Any, method: str, path: str, headers: str = "", body: Any = None) -> tuple[int, dict[str, str], bytes]:
    data = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    with server.connect() as raw:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}{headers}\r\n"
        raw.sendall(head.encode() + data)
        head_bytes, _, answer = read_all(raw).partition(b"\r\n\r\n")
    status, *lines = head_bytes.decode().split("\r\n")
    return int(status.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines), answer


def stable(headers: dict[str, str]) -> dict[str, str]:
    """Without what differs from answer to answer."""
    return {k: v for k, v in headers.items() if k not in ("date", "x-request-id", "openai-processing-ms")}


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    server = RunningServer(FakeEngine(Script(b"hello")), api_keys=(KEY,), root_path="/llm")
    yield server
    server.close()


# ---------------------------------------------------------------------------------------------- methods


def test_head_is_answered_as_get_is_without_the_body(plain: Any) -> None:
    read = [path for method, path in routes(plain) if method == "GET"]
    assert len(read) == 63
    for path in read:
        status, headers, body = ask(plain, "GET", path)
        assert body
        if path == "/metrics":  # each answer counts the one before it
            assert ask(plain, "HEAD", path)[0::2] == (status, b"")
            continue
        assert headers["content-length"] == str(len(body))
        status_of_head, headers_of_head, nothing = ask(plain, "HEAD", path)
        assert (status_of_head, stable(headers_of_head), nothing) == (status, stable(headers), b"")


def test_head_of_what_fails_has_the_same_status(start: Any) -> None:
    server = start(FakeEngine(state="failed"))
    for path, status in (("/health", 503), ("/healthz", 503), ("/v1/models/none", 404), ("/nothing", 404)):
        assert ask(server, "HEAD", path)[0::2] == (status, b"")


def test_every_405_says_what_is_allowed(plain: Any) -> None:
    allowed: dict[str, set[str]] = {}
    for method, path in routes(plain):
        allowed.setdefault(path, set()).add(method)
    named = "/v1/adapters/opsin-test"
    for path in allowed:
        if path.startswith(f"{named}/"):  # it is the name of an adapter as well
            allowed[path] |= allowed[named]
        if path.endswith(("/responses/compact", "/responses/input_tokens")):  # as they are of responses
            allowed[path] |= allowed["/responses/opsin-test"]
    for path, methods in allowed.items():
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "ROUTE"):
            if method not in methods:
                status, headers, body = ask(plain, method, path)
                assert status == 405, (method, path)
                assert headers["allow"] == ", ".join(sorted(methods)).lower()
                if method != "HEAD":
                    assert json.loads(body)["error"]["code"] == "method_not_allowed"


# ----------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [("ready", 200, 200), ("starting", 200, 503), ("restarting", 200, 503), ("failed", 503, 503)],
)
def test_probes_under_the_names_that_balancers_ask(start: Any, state: Any, live: int, ready: int) -> None:
    server = start(FakeEngine(state=state), api_keys=(KEY,))
    for path in ("/healthz", "/livez", "/health/live"):
        assert ask(server, "GET", path)[0] == live
    for path in ("/health", "/readyz", "/ping", "/health/ready"):
        assert ask(server, "GET", path)[0] == ready


def test_a_server_that_drains_is_live_and_not_ready(start: Any) -> None:
    server = start()
    server.services.admission.draining = True
    assert [ask(server, "GET", path)[0] for path in ("/health", "/ping", "/healthz")] == [503, 503, 200]


# ------------------------------------------------------------------------------------ slashes and prefixes


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("//v1///models//", "/v1/models"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("/llm/v1/models", "/v1/models"),
        ("//llm//v1/models/", "/v1/models"),
        ("/llm/", "/"),
        ("/llm", "/"),
        ("/llmv1/models", "/llmv1/models"),
        ("/v1/llm", "/v1/llm"),
        ("/llm/llm/models", "/llm/models"),
        ("/openai/v1/models", "/v1/models"),
        ("/llm/openai/models", "/models"),
        ("/openai/llm/models", "/llm/models"),
        ("/LLM/models", "/LLM/models"),
        ("http://host:8000/llm/v1/models", "/v1/models"),
        ("HTTPS://host", "/"),
        ("/http://host/models", "/http:/host/models"),
    ],
)
def test_the_route_of_a_path(path: str, route: str) -> None:
    assert route_path(path, ["/llm", OPENAI]) == route


@pytest.mark.parametrize("base", ["/v1", "/v1/", "//v1", "/v1//", "", "/", "//", "/openai/v1", "/openai/v1/"])
def test_any_base_that_means_this_server(plain: Any, base: str) -> None:
    for join in (base, base + "/"):
        body = {"role": "user", "content": "hi"}
        status, _, answer = ask(plain, "POST", f"{join}/chat/completions", body={**CHAT, "messages": [body]})
        assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "hello")
        assert ask(plain, "GET", f"{join}/models/")[0] == 200
        assert ask(plain, "GET", f"{join}/models/opsin-test/")[0] == 200
    client = plain.client(api_key="x")
    client.base_url = plain.url + base
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "hello"
    assert client.models.retrieve("opsin-test").id == "opsin-test"


@pytest.mark.parametrize("prefix", ["", "/llm", "//llm", "/llm/"])
def test_a_proxy_may_take_its_prefix_away_or_leave_it(guarded: RunningServer, prefix: str) -> None:
    for path, open_to_all in (("/health/live", True), ("/ping", True), ("/v1/models", False), ("/metrics", False)):
        assert ask(guarded, "GET", prefix + path)[0] == (200 if open_to_all else 401)
        assert ask(guarded, "GET", prefix + path, f"Authorization: Bearer {KEY}\r\n")[0] == 200
    client = guarded.client(api_key=KEY)
    client.base_url = guarded.url + prefix + "/v1"
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "hello"


def test_an_address_may_be_absolute(guarded: RunningServer) -> None:
    url, key = f"{guarded.url}/v1/models?api-version=1", f"Authorization: Bearer {KEY}\r\n"
    assert (ask(guarded, "GET", url)[0], ask(guarded, "GET", url, key)[0]) == (401, 200)
    assert ask(guarded, "GET", f"{guarded.url}/health/live")[0] == 200


def test_no_address_is_redirected(plain: Any) -> None:
    for path in ("/v1/models/", "//evil.test/v1/models", "/v1", "/openai", "//evil.test//"):
        status, headers, _ = ask(plain, "GET", path)
        assert status in (200, 404)
        assert "location" not in headers


# ------------------------------------------------------------------------------------------------- Azure


def azure(server: RunningServer, **options: Any) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(
        azure_endpoint=server.url, api_version="2025-04-01-preview", max_retries=0, timeout=20, **options
    )


@pytest.mark.parametrize("options", [{}, {"azure_deployment": "opsin-test"}])
@pytest.mark.parametrize("credential", [{"api_key": KEY}, {"azure_ad_token": KEY}])
def test_azures_client(guarded: RunningServer, options: dict[str, Any], credential: dict[str, str]) -> None:
    client = azure(guarded, **options, **credential)
    answer = client.chat.completions.create(**CHAT)
    assert (answer.choices[0].message.content, answer.model) == ("hello", "opsin-test")
    raw = client.completions.create(model="opsin-test", prompt="hi")
    assert (raw.choices[0].text, raw.model) == ("hello", "opsin-test")
    chunks = client.chat.completions.create(**CHAT, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
    assert [model.id for model in client.models.list()] == ["opsin-test", "gpt-4o-2024-08-06"]
    with pytest.raises(openai.AuthenticationError):
        azure(guarded, **options, api_key="wrong").chat.completions.create(**CHAT)


def test_azures_version_may_stand_in_every_query(plain: Any) -> None:
    """Its clients send it always, and here it means nothing."""
    for method, path in routes(plain):
        if method in ("GET", "DELETE"):
            without, _, said = ask(plain, method, path)
            status, _, answer = ask(plain, method, path + "?api-version=preview")
            assert status == without, path
            assert status < 400 or answer == said, path


def test_azures_address_names_the_model(guarded: RunningServer) -> None:
    client = azure(guarded, azure_deployment="gpt-4o-2024-08-06", api_key=KEY)
    assert client.chat.completions.create(model="whatever", messages=USER).model == "gpt-4o-2024-08-06"
    with pytest.raises(openai.NotFoundError) as caught:
        azure(guarded, azure_deployment="org/none", api_key=KEY).chat.completions.create(**CHAT)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "org/none" in caught.value.message
    path = "/openai/deployments/opsin-test/chat/completions?api-version=2024-10-21"
    for model in ({}, {"model": None}, {"model": "gpt-4o"}):
        status, _, answer = ask(guarded, "POST", path, f"api-key: {KEY}\r\n", {"messages": USER, **model})
        assert (status, json.loads(answer)["model"]) == (200, "opsin-test")


def test_the_many_addresses_are_few_labels(start: Any) -> None:
    server = start(api_keys=(), root_path="/llm")
    for path in ("/v1/chat/completions", "//v1/chat//completions/", "/openai/v1/chat/completions", "/llm/v1/nothing"):
        ask(server, "POST", path, body=CHAT)
    for deployment in ("opsin-test", "none", "a/b"):
        ask(server, "POST", f"/openai/deployments/{deployment}/chat/completions", body={"messages": USER})
    families = text_string_to_metric_families(ask(server, "GET", "/metrics")[2].decode())
    labels = {s.labels["route"] for f in families for s in f.samples if f.name == "opsin_requests"}
    assert labels == {"/v1/chat/completions", "/deployments/{name:path}/chat/completions", "other"}
