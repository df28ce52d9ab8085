"""A server that cannot start says why in one sentence."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from support.served import Process, Served
from support.served_checks import sentence
from support.talk import MINI


def _no_such_folder(folder: Path) -> tuple[str, str]:
    return str(folder / "nowhere"), "nowhere"


def _an_empty_folder(folder: Path) -> tuple[str, str]:
    folder.mkdir()
    return str(folder), "config.json"


def _a_file(folder: Path) -> tuple[str, str]:
    folder.write_text("{}")
    return str(folder), str(folder)


def _copied(folder: Path) -> Path:
    shutil.copytree(MINI, folder)
    return folder


def _truncated_weights(folder: Path) -> tuple[str, str]:
    weights = _copied(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return str(folder), "model.safetensors"


def _a_header_of_nothing(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").write_bytes(b"\xff" * 64)
    return str(folder), "model.safetensors"


def _no_weights(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").unlink()
    return str(folder), "safetensors"


def _no_tokenizer(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "tokenizer.json").unlink()
    return str(folder), "tokenizer.json"


def _broken_tokenizer(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "tokenizer.json").write_text('{"model": {}}')
    return str(folder), "tokenizer.json"


def _broken_config(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "config.json").write_text('{"model_type": ')
    return str(folder), "config.json"


def _changed_config(folder: Path, **changes: object) -> str:
    file = _copied(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def _unknown_family(folder: Path) -> tuple[str, str]:
    return _changed_config(folder, model_type="perceiver_x"), "perceiver_x"


def _quantized(folder: Path) -> tuple[str, str]:
    return _changed_config(folder, quantization_config={"quant_method": "awq"}), "awq"


def _other_sizes(folder: Path) -> tuple[str, str]:
    text = json.loads((MINI / "config.json").read_text())["text_config"]
    return _changed_config(folder, text_config=text | {"intermediate_size": 384}), "512"


def _pickled_weights(folder: Path) -> tuple[str, str]:
    (_copied(folder) / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder), ".bin"


BAD_MODELS = [
    _no_such_folder,
    _an_empty_folder,
    _a_file,
    _truncated_weights,
    _a_header_of_nothing,
    _no_weights,
    _no_tokenizer,
    _broken_tokenizer,
    _broken_config,
    _unknown_family,
    _quantized,
    _other_sizes,
    _pickled_weights,
]


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__.strip("_"))
def test_a_bad_model_is_one_sentence(tmp_path, make):
    model, word = make(tmp_path / "model")
    with Process("serve", "--port", "0", model) as process:
        assert word in sentence(process)


def test_a_busy_port_is_one_sentence():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with Process("serve", "--port", str(port)) as process:
            assert f"port {port} is in use" in sentence(process)


@pytest.mark.parametrize("name", ["[/no]", "[red]", "a b", "ünïcödé", "it's"])
def test_a_path_is_named_as_it_was_written(name):
    """Brackets are no markup."""
    with Process("serve", "--port", "0", f"/nowhere/{name}") as process:
        assert f"/nowhere/{name}" in sentence(process)


def test_a_model_in_a_folder_of_an_odd_name(tmp_path):
    folder = tmp_path / "my [red] model's folder"
    shutil.copytree(MINI, folder)
    with Served(str(folder)) as server:
        assert server.client().models.list().data[0].id == folder.name
        assert folder.name in server.stderr
        server.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_listening_beyond_this_machine_needs_a_key(host):
    with Process("serve", "--port", "0", "--host", host) as process:
        said = sentence(process)
        assert "--api-key" in said
        assert host in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--host", "no.such.host.invalid", "--api-key", "k"), "no.such.host.invalid"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),  # an address that is not this machine's
        (("--port", "70000"), "70000"),
        (("--media-allow", "not a host"), "--media-allow"),
        (("--max-image-pixels", "900000000"), "--max-image-pixels"),
        (("--max-context", "1000", "--kv-memory", "1MB"), "--max-context"),
        (("--api-key", ""), "--api-key"),
        (("--plugins", "llava"), "qwen2_vl"),
        (("--mmproj", "x.gguf"), "x.gguf goes with a GGUF"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_settings_that_cannot_be_are_one_sentence(words, hint):
    with Process("serve", *(() if "--port" in words else ("--port", "0")), *words) as process:
        assert hint in sentence(process)
