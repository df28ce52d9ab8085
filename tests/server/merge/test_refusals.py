"""What is not merged: refused in a sentence, and nothing is left on the disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin_plugins.spec import SpecError
from opsin_server import atomic_directory
from opsin_server.errors import ConfigError
from opsin_server.merge import command
from opsin_server.merge.command import Request, merge
from support import peft, tiny


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Of a new base and adapter, for tests that spoil one."""
    model = tiny.text_model("llama")
    base = tiny.save(model, tmp_path / "base")
    adapter = peft.make(model, tmp_path / "adapter", 0, r=4, target_modules=["q_proj"])
    return Request(base, adapter.directory, tmp_path / "out")


def refused(request: Request, match: str, **choices: object) -> None:
    with pytest.raises((ConfigError, SpecError), match=match):
        merge(Request(**{**vars(request), **choices}))  # type: ignore[arg-type]
    _nothing_is_left(request)


def _nothing_is_left(request: Request) -> None:
    assert sorted(path.name for path in request.out.parent.iterdir()) == ["adapter", "base"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_place_to_write(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(request_, "base is BASE itself: give a new directory", out=request_.base)
    refused(request_, "base is BASE itself", out=request_.base / "../base")
    refused(request_, "adapter is not empty: give a new directory", out=request_.adapter)
    refused(request_, "missing is not a directory: make it first", out=request_.out.parent / "missing/out")
    monkeypatch.setattr(atomic_directory.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 2**20}))
    refused(request_, r"out needs 0\.06 GiB of disk; 0\.00 GiB are free")


def test_what_is_no_model_or_no_adapter(request_: Request) -> None:
    refused(request_, "gone is not a directory", base=request_.base / "gone")
    refused(request_, r"adapter is not a directory \(nothing is downloaded", adapter=request_.base / "adapter")
    refused(
        request_, "adapter: it is an adapter, not|adapter is an adapter, not a model|config.json", base=request_.adapter
    )
    refused(request_, "base: it is no adapter: there is neither", adapter=request_.base)
    (request_.adapter / "adapter_model.safetensors").rename(request_.adapter / "adapter_model.bin")
    refused(request_, "adapter_model.bin is a pickle, which can run code")


def test_what_is_not_served_is_not_merged(request_: Request) -> None:
    config = request_.adapter / "adapter_config.json"
    edit(config, use_dora=True)
    refused(request_, "use_dora is True, which is not served: DoRA scales")
    edit(config, use_dora=False, r=5)
    refused(request_, "rank 4, but adapter_config.json says 5")
    edit(config, r=4)
    file = request_.adapter / "adapter_model.safetensors"
    state = load_file(file)
    save_file({key.replace("layers.1", "layers.7"): t for key, t in state.items()}, file)
    refused(request_, "layers.7.self_attn.q_proj: no linear")


QUANTIZED = [
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config 'awq'"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config 'compressed-tensors'"),
]


@pytest.mark.parametrize(("fields", "named"), QUANTIZED)
def test_a_quantized_base(request_: Request, fields: dict, named: str) -> None:
    edit(request_.base / "config.json", **fields)
    refused(request_, rf"base is quantized \({named}\): weights that are rounded .* other answers .* --dequantize")
    refused(request_, rf"\({named}\), and cannot be dequantized by this version", dequantize=True)


def test_a_base_of_packed_weights_that_does_not_say_so(request_: Request) -> None:
    file = next(request_.base.glob("model-00001*.safetensors"))
    key, tensor = "model.layers.0.self_attn.q_proj.weight_packed", torch.zeros(4, 4, dtype=torch.int32)
    save_file({**load_file(file), key: tensor}, file)
    (request_.base / "model.safetensors.index.json").unlink()
    refused(request_, rf"is quantized \(packed weights, as {key}\)")


def test_a_base_that_is_not_whole(request_: Request) -> None:
    file = next(request_.base.glob("model-00001*.safetensors"))
    save_file({**load_file(file), "odd.weight": torch.zeros(1)}, file)
    (request_.base / "model.safetensors.index.json").unlink()
    refused(request_, "keys that nothing takes: odd.weight")


def test_a_number_that_its_type_cannot_hold(request_: Request) -> None:
    for file in request_.base.glob("*.safetensors"):
        save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file)
    edit(request_.adapter / "adapter_config.json", lora_alpha=1e8)
    refused(request_, r"q_proj.weight: with the adapter in it, a number is too large for float16 \(65504\)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nothing(
    request_: Request, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        signal.pause()  # not reached where the signal has done its work

    monkeypatch.setattr(command, "merged", interrupt)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit, match=str(128 + number)):
            merge(request_)
    finally:
        signal.signal(number, before)
    _nothing_is_left(request_)


def test_what_is_written_must_be_what_was_meant(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(base: Path, folder: Path) -> list[str]:
        (folder / "config.json").write_bytes((base / "config.json").read_bytes())
        edit(folder / "config.json", rms_norm_eps=0.5)
        return []

    monkeypatch.setattr(command, "copy_files", copied)
    refused(request_, "as written describes another model")
