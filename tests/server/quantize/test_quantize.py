"""Model directories in fewer bits: what is written means the same to this server and to transformers, and is near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from typer.testing import CliRunner

from opsin_plugins.loading.open_model import open_model
from opsin_server.cli import app
from opsin_server.quantize.fit import fit_groups, nearest_levels
from support import oracle, quantized_checks, tiny

SCHEMES = ["int4", "int8", "fp8"]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["quantize", *words])
    assert done.exit_code == 0, done.output
    return done.output


def error(mine: Tensor, wanted: Tensor) -> float:
    return float((mine - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_language_model_is_read_by_transformers_as_it_is_here(tmp_path: Path, scheme: str) -> None:
    theirs = quantized_checks.tiny()
    theirs.save_pretrained(tmp_path / "base")
    said = run(str(tmp_path / "base"), str(tmp_path / "out"), "--scheme", scheme)
    assert "14 of 21 tensors" in said
    ours = oracle.with_declared(tmp_path / "out")
    asked = oracle.prompt(ours, list(range(5, 25)), [])
    (mine,) = oracle.our_logits(ours, [asked])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert error(mine, oracle.their_logits(again, ours, asked)) < 1e-3
    assert error(mine, oracle.their_logits(theirs, ours, asked)) < {"int4": 0.3, "int8": 0.05, "fp8": 0.15}[scheme]


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("vision", [False, True])
def test_a_vision_language_model(tmp_path: Path, scheme: str, vision: bool) -> None:
    directory = tiny.save(tiny.qwen2_vl(), tmp_path / "base")
    run(str(directory), str(tmp_path / "out"), "--scheme", scheme, *(["--quantize-vision"] if vision else []))
    packed = {key for key, info in open_model(tmp_path / "out").files.tensors.items() if info.packing is not None}
    assert any("layers.0.self_attn.q_proj" in key for key in packed)
    assert any("visual" in key for key in packed) == vision
    ours = oracle.with_declared(tmp_path / "out")
    text = [ours.spec.vision_start or 1] if hasattr(ours.spec, "vision_start") else []
    asked = oracle.prompt(ours, [*text, 5, ours.spec.image_token, 6, 7], [oracle.picture(0, 56, 56)])
    (mine,) = oracle.our_logits(ours, [asked])
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert error(mine, oracle.their_logits(again, ours, asked)) < 1e-3


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    quantized_checks.tiny().save_pretrained(tmp_path / "base")
    run(str(tmp_path / "base"), str(tmp_path / "out"), "--scheme", "int8")
    done = CliRunner().invoke(app, ["quantize", str(tmp_path / "out"), str(tmp_path / "again"), "--scheme", "int4"])
    assert "is quantized already" in str(done.exception)
    assert not (tmp_path / "again").exists()
    full = CliRunner().invoke(app, ["quantize", str(tmp_path / "base"), str(tmp_path / "out"), "--scheme", "int4"])
    assert "is not empty" in str(full.exception)


def test_what_belongs_to_a_model_comes_along(tmp_path: Path) -> None:
    quantized_checks.tiny().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    run(str(tmp_path / "base"), str(tmp_path / "out"), "--scheme", "int4")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "whoever reads one file reads all"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["ignore"][0] == "lm_head"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fitted_range_loses_less_than_a_whole_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 512) * torch.rand(64, 1)
    weight[:, ::97] *= 6
    weight[0] = 0

    blocks = weight.unflatten(1, (-1, 128))

    def loss(scale: Tensor) -> float:
        return float((nearest_levels(blocks / scale[..., None]) * scale[..., None] - blocks).norm())

    scale = fit_groups(weight, 128, dtype)
    levels = nearest_levels(blocks / scale[..., None])
    assert (int(levels.min()), int(levels.max())) == (-8, 7)
    assert torch.equal(scale, scale.to(dtype).float())
    whole = (blocks.abs().amax(2) / 7).clamp(min=1e-12)
    assert loss(scale) < 0.9 * loss(whole)
