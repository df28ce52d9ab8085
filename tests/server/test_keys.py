"""Keys as an operator gives them: what they are to the server, and which it does not start with."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from opsin_server.api_keys import read_keys
from opsin_server.cli import app
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "environment", "keys"),
    [
        ([], {}, ()),
        (["a", "b"], {}, ("a", "b")),
        (["a"], {"OPSIN_API_KEY": "b", "OPSIN_API_KEYS": "c"}, ("a",)),
        ([], {"OPSIN_API_KEY": "correct horse battery"}, ("correct horse battery",)),
        ([], {"OPSIN_API_KEY": "one,two"}, ("one,two",)),
        ([], {"OPSIN_API_KEY": "one\n"}, ("one",)),
        ([], {"OPSIN_API_KEY": "one\r\n"}, ("one",)),
        (["one\n"], {}, ("one",)),
        ([], {"OPSIN_API_KEY": ""}, ("",)),
        ([], {"OPSIN_API_KEYS": "one,two"}, ("one", "two")),
        ([], {"OPSIN_API_KEYS": " one, two\n"}, ("one", "two")),
        ([], {"OPSIN_API_KEYS": "one,\ntwo three\n"}, ("one", "two three")),
        ([], {"OPSIN_API_KEYS": "one,"}, ("one", "")),
        ([], {"OPSIN_API_KEY": "one", "OPSIN_API_KEYS": "two,three"}, ("one", "two", "three")),
    ],
)
def test_where_keys_come_from(options: list[str], environment: dict[str, str], keys: tuple[str, ...]) -> None:
    assert read_keys(options, environment) == keys


def checked(*keys: str) -> None:
    ServerConfig(EngineConfig("none"), api_keys=keys).check()


@pytest.mark.parametrize("key", ["k", "sk-0123456789", "a,b", "~!\"#$%&'()*+/:;<=>?@[]^_`{|}"])
def test_keys_that_clients_can_send(key: str) -> None:
    checked(key)
    checked("one", key)


@pytest.mark.parametrize("key", ["", " ", "\n", "\t "])
def test_an_empty_key_guards_nothing(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^The key of --api-key, OPSIN_API_KEY or OPSIN_API_KEYS is empty"):
        checked(key)
    with pytest.raises(ConfigError, match=r"^Key 2 of 3 of "):
        checked("one", key, "three")


@pytest.mark.parametrize(
    "key",
    [
        "correct horse",
        " horse",
        "horse ",
        "horse\tx",
        "horse\nx",
        "h\u00f6rse",
        "horse\u200b",
        "horse\x00",
        "\ufeffhorse",
    ],
)
def test_a_key_that_no_client_can_send_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ConfigError, match="holds a blank, a line end or a character outside of ASCII") as caught:
        checked("one", key)
    assert "horse" not in str(caught.value)
    assert "Key 2 of 2" in str(caught.value)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch):
    """The configuration that `opsin serve` would run with, or what it says instead."""

    def configured(*words: str, **environment: str) -> ServerConfig | str:
        seen: list[ServerConfig] = []

        def run(config: ServerConfig) -> None:
            config.check()
            seen.append(config)
            raise SystemExit(0)

        monkeypatch.setattr("opsin_server.api.process.run", run)
        for name in ("OPSIN_API_KEY", "OPSIN_API_KEYS"):
            monkeypatch.delenv(name, raising=False)
        done = CliRunner().invoke(app, ["serve", *words], env=environment)
        return seen[0] if seen else str(done.exception)

    return configured


def test_a_variable_is_one_key(configured) -> None:
    assert configured(OPSIN_API_KEY="correct-horse-battery\n").api_keys == ("correct-horse-battery",)
    assert configured(OPSIN_API_KEYS="correct, horse,battery\n").api_keys == ("correct", "horse", "battery")
    assert configured("--api-key", "a", "--api-key", "b", OPSIN_API_KEY="c").api_keys == ("a", "b")
    assert configured().api_keys == ()
    said = configured(OPSIN_API_KEY="correct horse battery")
    assert "holds a blank" in said
    assert "horse" not in said


@pytest.mark.parametrize(
    "environment",
    [{"OPSIN_API_KEY": ""}, {"OPSIN_API_KEY": "\n"}, {"OPSIN_API_KEYS": ""}, {"OPSIN_API_KEYS": "one,,two"}],
)
def test_a_variable_without_a_key_does_not_open_the_server(configured, environment: dict[str, str]) -> None:
    assert "is empty" in configured(**environment)


def test_origins_and_root_path(configured) -> None:
    words = ("--allow-origin", "https://app.example.com/", "--allow-origin", "http://localhost:3000")
    config = configured(*words, "--root-path", "/llm/")
    assert config.allow_origins == ("https://app.example.com", "http://localhost:3000")
    assert config.root_path == "/llm"
    assert configured("--root-path", "/").root_path == ""
    assert "--root-path 'llm'" in configured("--root-path", "llm")
    assert "--allow-origin" in configured("--allow-origin", "https://app.example.com/chat")
