"""`opsin chat` and the environment's proxies: a server on this machine is asked without one."""

from __future__ import annotations

import http.server
import importlib.util
import subprocess
import threading
from collections.abc import Iterator

import openai
import pytest

from opsin_client.connect import ProxyError, connect, is_this_machine
from support.served import OPSIN, Served

HERE = [
    *("localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.0.0.2", "127.255.255.254"),
    *("::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::1%25lo", "0.0.0.0", "::"),
    *("127.1", "2130706433", "0x7f000001", "0177.0.0.1"),
]
ELSEWHERE = [
    "example.test",
    "localhost.example.test",
    "notlocalhost",
    "10.0.0.1",
    "128.0.0.1",
    "2001:db8::1",
    "10.1",
    "",
]


@pytest.mark.parametrize("host", HERE)
def test_this_machine_in_all_its_forms(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_machines(host: str) -> None:
    assert not is_this_machine(host)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Notes what it is asked for, and has nothing."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(502)

    do_CONNECT = do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and what it was asked for."""
    handler = type("Noting", (Proxy,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def chat(served: Served):
    def chat(url: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = served.room.environment(**{"NO_PROXY": "", **env})
        words = [OPSIN, "chat", "--url", url, "--max-tokens", "2", "Hello"]
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)

    return chat


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(chat, served, proxy, host):
    url, asked = proxy
    variables = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"), url)
    done = chat(served.url.replace("127.0.0.1", host) + "/v1", **variables)
    assert done.returncode == 0, done.stderr
    assert asked == []


def test_a_server_elsewhere_is_asked_through_it_unless_no_proxy_says_so(chat, proxy):
    url, asked = proxy
    assert chat("http://model.test/v1", http_proxy=url).returncode == 1
    assert asked == ["http://model.test/v1/models"]
    done = chat("http://model.test/v1", http_proxy=url, NO_PROXY="model.test")
    assert "no server answers at http://model.test/v1" in done.stderr
    assert len(asked) == 1


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch):
    """Sets the variables of the environment that name proxies, and no others."""

    def set_variables(**values: str) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="socksio is installed")
@pytest.mark.parametrize("name", ["all_proxy", "ALL_PROXY", "http_proxy"])
def test_a_socks_proxy_without_its_package_is_one_sentence(proxies, name):
    proxies(**{name: "socks5://user:secret@127.0.0.1:9"})
    with pytest.raises(ProxyError) as refused:
        connect("http://model.test/v1", "none")
    assert str(refused.value) == (
        f"{name} names a SOCKS proxy, which takes another package: pip install socksio (or unset it)"
    )
    assert isinstance(connect("http://localhost:8000/v1", "none"), openai.OpenAI)


@pytest.mark.parametrize("value", ["ftp://user:secret@127.0.0.1", "http://[::1", ":::"])
def test_what_is_no_proxy_is_one_sentence_without_its_password(proxies, value):
    proxies(HTTP_PROXY=value)
    with pytest.raises(ProxyError, match=r"^HTTP_PROXY names no proxy: write http://HOST:PORT$"):
        connect("http://model.test/v1", "none")
    assert isinstance(connect("http://127.0.0.1:8000/v1", "none"), openai.OpenAI)


def test_the_sentence_is_what_a_user_sees(chat):
    done = chat("http://model.test/v1", all_proxy="ftp://127.0.0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "opsin chat: all_proxy names no proxy: write http://HOST:PORT\n"
