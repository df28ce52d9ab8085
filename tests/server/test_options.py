"""One table of options: the structs' fields are flags, keys of a file, and what both processes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from opsin_server import cli
from opsin_server.cli import CHECK
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import ConfigError
from opsin_server.options import build, fields_of, read_config_file, size

FIELDS = tuple(fields_of(ServerConfig))
ENGINE = {"engine": {"model": "m"}}


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> ServerConfig:
    """What `opsin serve` would run with."""
    found: list[ServerConfig] = []
    monkeypatch.setattr("opsin_server.api.process.run", found.append)
    monkeypatch.setattr("os._exit", lambda code: None)
    monkeypatch.setattr("opsin_server.printer.install", lambda: None)
    monkeypatch.setattr("opsin_server.printer.drain", lambda: None)
    result = CliRunner().invoke(cli.app, ["serve", *arguments])
    assert result.exit_code == code, result.output
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return found[0]


def test_every_option_has_a_flag_of_its_own() -> None:
    names = [field.name for field in FIELDS]
    assert len(names) == len(set(names))
    help_text = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["serve", "--help"]).output
    assert all(f"--{name}" in help_text for name in names)
    assert all(field.help for field in FIELDS)


def test_without_options_the_structs_defaults_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPSIN_API_KEY", raising=False)
    assert served(monkeypatch, "m") == ServerConfig(EngineConfig("m"))


def test_flags_reach_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    found = served(
        monkeypatch,
        *("m", "--port", "9", "--threads", "3", "--kv-memory", "2GiB", "--no-prefix-cache", "--eager"),
        *("--plugins", "llava, clip", "--media-allow", "a.test", "--media-allow", "10.0.0.0/8", "--media-timeout", "3"),
        *("--served-model-name", "x", "--served-model-name", "y", "--model-option", "a=b", "--max-body-bytes", "1 MB"),
    )
    engine = found.engine
    assert (found.port, engine.threads, engine.kv_memory, engine.prefix_cache, engine.eager) == (
        9,
        3,
        2**31,
        False,
        True,
    )
    assert (engine.plugins, engine.family_options()) == (("llava", "clip"), {"a": "b"})
    assert (found.media.allow, found.media.fetch_timeout) == (("a.test", "10.0.0.0/8"), 3.0)
    assert (found.served_names, found.max_body_bytes) == (("x", "y"), 10**6)


def test_a_file_says_the_same_and_a_flag_counts_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "opsin.toml"
    file.write_text(
        'model = "from-file"\nport = 9\nthreads = 3\nkv-memory = "2GiB"\nprefix_cache = false\nplugins = ["llava"]\n'
        'media-allow = "a.test"\napi-key = ["one", "two"]\ndrain-timeout = 5\n'
    )
    found = served(monkeypatch, "--config", str(file), "--port", "10")
    assert (found.engine.model, found.port, found.engine.threads, found.engine.kv_memory) == ("from-file", 10, 3, 2**31)
    assert (found.engine.prefix_cache, found.engine.plugins, found.media.allow) == (False, ("llava",), ("a.test",))
    assert (found.api_keys, found.drain_timeout) == (("one", "two"), 5.0)
    monkeypatch.setenv("OPSIN_API_KEY", "other")
    assert served(monkeypatch, "m", "--config", str(file)).api_keys == ("other",)
    assert served(monkeypatch, "m", "--config", str(file)).engine.model == "m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 9", "there is no option prot"),
        ("port = ", "is not TOML"),
        ('port = "9"', "--port must be a whole number"),
        ("threads = 0", "--threads must be a whole number of at least 1"),
        ('device = "tpu"', "--device 'tpu' is no device: write auto, cpu, cuda, or cuda:1 for the second GPU"),
        ('device = "cuda:-1"', "--device 'cuda:-1' is no device"),
        ("device = 1", "--device must be a text"),
        ('kv-memory = "lots"', "--kv-memory: 'lots' is no size"),
        ("kv-memory = 1.5", "--kv-memory must be a size, like 4GiB"),
        ("kv-memory = [1]", "--kv-memory must be a size, like 4GiB"),
        ("model = 5", "model is 5; write a directory's path in quotes"),
        ("max-image-pixels = 999999999", "--max-image-pixels is 999,999,999; it can be at most"),
    ],
)
def test_what_a_file_says_wrongly_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "opsin.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as failure:
        build(ServerConfig, read_config_file(file, FIELDS), FIELDS, ENGINE)
    assert said in str(failure.value)


@pytest.mark.parametrize(
    ("text", "count"), [("4GiB", 2**32), ("20MB", 20 * 10**6), (" 1.5 kib ", 1536), ("7", 7), (7, 7)]
)
def test_sizes(text: Any, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_devices_are_taken_from_flags_and_files(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "opsin.toml"
    file.write_text(f'device = "{device}"\n')
    assert served(monkeypatch, "m", "--device", device).engine.device == device
    assert served(monkeypatch, "m", "--config", str(file)).engine.device == device


@pytest.mark.parametrize("device", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:01", "cuda: 1", "cuda:1000", "cpu:0"])
def test_what_is_no_device_is_refused_before_anything_starts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"^--device {device!r} is no device: write auto, cpu, cuda, or cuda:1"):
        served(monkeypatch, "m", "--device", device, code=1)


@pytest.mark.parametrize("options", [("a",), ("a=b", "a=c"), ("=b",)])
def test_family_options_are_pairs(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--model-option"):
        EngineConfig("m", model_options=options).family_options()


def test_both_processes_read_the_same_struct() -> None:
    config = build(EngineConfig, {"threads": 2}, tuple(fields_of(EngineConfig)), {"model": "m"})
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config


def test_check_takes_what_decides_over_memory() -> None:
    assert {"kv-memory", "encoder-memory"} <= {field.name for field in CHECK}
