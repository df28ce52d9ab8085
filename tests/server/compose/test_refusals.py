"""What cannot be composed: refused with the values named, and nothing is left on the disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin_plugins.spec import SpecError
from opsin_server import atomic_directory as folder
from opsin_server.compose import command
from opsin_server.compose.command import Request, compose
from opsin_server.errors import ConfigError
from support import halves, tiny


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Of new halves, for tests that spoil one."""
    encoder = halves.encoder("clip_vision_model", tmp_path / "encoder")
    language = halves.language("llama", tmp_path / "language")
    return Request(encoder.directory, language.directory, tmp_path / "out")


def refused(request: Request, match: str, **choices: object) -> None:
    with pytest.raises((ConfigError, SpecError), match=match):
        compose(Request(**{**vars(request), **choices}))
    _nothing_is_left(request)


def _nothing_is_left(request: Request) -> None:
    assert sorted(path.name for path in request.out.parent.iterdir()) == ["encoder", "language"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_choices_that_there_are_not(request_: Request) -> None:
    refused(
        request_,
        r"--fusion cross_attention: it needs cross-attention layers.*; there is scatter",
        fusion="cross_attention",
    )
    refused(request_, r"--fusion levels: it adds visual rows after layers", fusion="levels")
    refused(request_, r"--fusion gate: there is scatter", fusion="gate")
    refused(request_, r"--projector linear: a LLaVA directory has no form.*there is mlp2x", projector="linear")
    refused(request_, r"--projector resampler: there is mlp2x", projector="resampler")
    refused(request_, r"feature layer -9 of a tower with 4 layers", layer=-9)


def test_a_class_token_that_siglip_has_not(request_: Request) -> None:
    siglip = halves.encoder("siglip_vision_model", request_.vision / "siglip").directory
    refused(
        request_, "'default' drops a class token, and siglip_vision_model has none", vision=siglip, select="default"
    )


@pytest.mark.parametrize("kind", ["llava.pixtral", "qwen2_vl"])
def test_towers_inside_of_other_models(kind: str, request_: Request) -> None:
    vlm = tiny.save(tiny.FAMILIES[kind].make(), request_.vision / "vlm")
    refused(request_, r"--vision .*vlm: model_type '\w+' is not taken \(.+\); there are clip, clip_v", vision=vlm)


def test_halves_in_each_others_place(request_: Request) -> None:
    refused(request_, r"--vision .*: model_type 'llama' is not taken; there are clip", vision=request_.language)
    refused(request_, r"--language .*: 'clip_vision_model'|'clip_vision_model' is not taken", language=request_.vision)


def test_pickles_are_not_read_and_the_way_out_is_named(request_: Request) -> None:
    for half in (request_.vision, request_.language):
        kept = [(path, path.read_bytes()) for path in half.glob("*.safetensors*")]
        for path, _ in kept:
            path.unlink()
        (half / "pytorch_model.bin").write_bytes(b"x")
        refused(request_, r"pytorch_model\.bin: only safetensors are read.*: python -c")
        for path, content in kept:
            path.write_bytes(content)


def test_grids_and_widths_are_named(request_: Request) -> None:
    config = request_.vision / "config.json"
    edit(config, image_size=35)
    refused(request_, r"has 17 rows, but image_size 35 in patches of 7 needs 26 \(5 x 5 and the class token\)")
    edit(config, image_size=30)
    refused(request_, "image_size 30 is no grid of patches of 7")
    edit(config, image_size=28, hidden_size=48)
    refused(request_, r"shape \[.*32.*\], but vision\S* needs \[.*48")
    edit(config, hidden_size=32)
    edit(request_.vision / "preprocessor_config.json", crop_size={"height": 14, "width": 14})
    refused(request_, "a tower of 28 pixels a side needs pictures of that size")


def test_a_language_model_that_is_not_what_it_says(request_: Request) -> None:
    config = request_.language / "config.json"
    edit(config, vocab_size=170)
    refused(request_, "vocab_size 170, but 160 rows of embedding")
    edit(config, vocab_size=160, quantization_config={"quant_method": "awq", "bits": 4})
    refused(request_, r"is quantized \(quantization_config\)")


def test_tensors_that_no_model_has(request_: Request) -> None:
    file = request_.vision / "model.safetensors"
    state = load_file(file)
    save_file({**state, "odd.weight": torch.zeros(1)}, file)
    refused(request_, r"keys that nothing takes: vision_tower\.vision_model\.odd\.weight")
    save_file({key: t for key, t in state.items() if "pre_layrnorm" not in key}, file)
    refused(request_, r"weights that no key fills: vision\.pre_norm")
    save_file({key: t.to(torch.int8) for key, t in state.items()}, file)
    refused(request_, "is stored as I8; F32, BF16, F16 are taken")


def test_a_template_that_cannot_show_a_picture(request_: Request) -> None:
    filtered = "{% for m in messages %}{{ m.content | replace('<', '') }}{% endfor %}"
    (request_.language / "chat_template.jinja").write_text(filtered)
    refused(request_, "the chat template of the language model leaves out .*<image>")


def test_the_place_to_write(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(request_, "missing is not a directory: make it first", out=request_.out.parent / "missing/out")
    refused(request_, "encoder is not empty: give a new directory", out=request_.vision)
    refused(request_, r"config\.json is a file", out=request_.vision / "config.json")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 2**20}))
    refused(request_, r"out needs 0\.06 GiB of disk; 0\.00 GiB are free")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nothing(
    request_: Request, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)
        signal.pause()  # not reached where the signal has done its work

    monkeypatch.setattr(command, "write_shards", interrupt)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit, match=str(128 + number)):
            compose(request_)
    finally:
        signal.signal(number, before)
    _nothing_is_left(request_)


def test_a_terminal_that_closes_does_not_end_what_nohup_started(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "write_shards", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    monkeypatch.setattr(command, "open_model", _written)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SpecError, match="reached"):
            compose(request_)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def _written(folder: Path) -> None:
    raise SpecError("reached")


def test_a_directory_that_is_no_utf8(request_: Request) -> None:
    refused(
        request_, "is not UTF-8: give a directory with another name", out=request_.out.parent / os.fsdecode(b"\xff")
    )


def test_a_disk_that_fails_is_a_sentence(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_shards", fail)
    refused(request_, "out cannot be written: .*No space left on device")


def test_an_empty_directory_may_be_there(request_: Request) -> None:
    request_.out.mkdir()
    compose(request_)
    assert (request_.out / "config.json").is_file()
