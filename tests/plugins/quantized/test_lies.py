"""Packed checkpoints that are cut short or lie: a sentence before anything is served."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_plugins.spec import SpecError
from support import oracle, packers
from support.quantized_checks import saved, tiny

NAME = "model.layers.0.mlp.down_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64}
Change = Callable[[dict[str, Tensor]], object]
MUTATIONS = 500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tiny(), tmp_path, GPTQ, lambda name, weight: packers.gptq(weight, 64))
    return tmp_path


def changed(folder: Path, change: Change, **config: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(document))


def set_nan(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.scales"][0, 3] = float("nan")


def narrow(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.qweight"] = tensors[f"{NAME}.qweight"][:, :128].clone()


def of_floats(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.qweight"] = tensors[f"{NAME}.qweight"].float()


def in_disorder(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.g_idx"] = tensors[f"{NAME}.g_idx"].flip(0).contiguous()


def no_such_group(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.g_idx"][0] = 99


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda t: t.pop(f"{NAME}.scales"), {}, "down_proj has no scales"),
        (lambda t: t.pop(f"{NAME}.qzeros"), {}, "down_proj has no qzeros"),
        (lambda t: t.pop(f"{NAME}.g_idx"), {"desc_act": True}, "has no g_idx"),
        (lambda t: t.pop(f"{NAME}.qweight"), {}, "weights that no key fills"),
        (narrow, {}, "has the shape"),
        (of_floats, {}, "is stored as F32, not I32"),
        (set_nan, {}, "scales that are no numbers"),
        (in_disorder, {}, "orders inputs in another way"),
        (no_such_group, {}, "groups that are not there"),
        (lambda t: None, {"group_size": 32}, "has the shape"),
        (lambda t: None, {"group_size": 0}, "group_size is 0"),
        (lambda t: None, {"group_size": "64"}, "group_size is '64'"),
        (lambda t: None, {"bits": 3}, "bits 3 is not read; there is 4 or 8"),
        (lambda t: None, {"bits": 8}, "has the shape"),
        (lambda t: None, {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read"),
        (lambda t: None, {"dynamic": {"+:(": {"bits": 8}}}, "cannot be read"),
        (lambda t: None, {"quant_method": "aqlm"}, "'aqlm', which is not read; there are awq, bitsandbytes"),
        (lambda t: None, {"quant_method": None, "quant_algo": "FP8"}, "'FP8', which is not read"),
        (lambda t: None, {"quant_method": None}, "'unnamed', which is not read"),
        (lambda t: None, {"quant_method": "awq", "version": "gemv"}, "version 'gemv' is not read"),
        (lambda t: None, {"quant_method": "awq"}, "has the shape"),
    ],
)
def test_a_lie_is_a_sentence(folder: Path, change: Change, config: dict[str, Any], said: str) -> None:
    changed(folder, change, **config)
    with pytest.raises(SpecError, match=said):
        oracle.with_declared(folder)


def test_no_mutation_is_worse_than_a_sentence(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes of the header and of the parts changed; tensors taken away or cut; numbers of the configuration changed."""
    whole, document = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    chance, other = random.Random(0), tmp_path_factory.mktemp("other")
    names = [name for name in whole if "layers" in name]
    refused = 0
    for _ in range(MUTATIONS):
        tensors, config = dict(whole), dict(document["quantization_config"])
        name = chance.choice(names)
        kind = chance.randrange(5)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[name] = tensors[name][: chance.randrange(len(tensors[name]))].clone()
        elif kind == 2:
            tensors[name] = tensors[name].to(chance.choice([torch.float16, torch.int64, torch.uint8]))
        elif kind == 3:
            config[chance.choice(["bits", "group_size", "desc_act", "quant_method", "dynamic"])] = chance.choice(
                [-1, 0, 2, 8, 2**40, "x", None, [], {}, True, "gptq", "fp8"]
            )
        save_file(tensors, other / "model.safetensors")
        if kind == 4:
            data = bytearray((other / "model.safetensors").read_bytes())
            data[chance.randrange(2000)] = chance.randrange(256)
            (other / "model.safetensors").write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        (other / "config.json").write_text(json.dumps(document | {"quantization_config": config}))
        try:
            oracle.with_declared(other)
        except SpecError:
            refused += 1
    assert refused > MUTATIONS / 3
