"""torchao's checkpoints, as transformers saves them: logits of the weights that they mean, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import SpecError
from support import oracle, packers
from support.quantized_checks import check, saved, tiny

CONFIG = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2}}}
NAME = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("block", [(1, 256), (1, 32), (128, 128)], ids=["rows", "groups", "blocks"])
@pytest.mark.parametrize("kind", ["Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor"])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zeros"])
def test_torchao(tmp_path: Path, kind: str, block: tuple[int, int], zero: bool) -> None:
    model = tiny(mlp=256)
    saved(model, tmp_path, CONFIG, lambda name, weight: packers.torchao(weight, kind, block, zero))
    check(model, tmp_path, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchao")
    saved(tiny(), folder, CONFIG, lambda name, weight: packers.torchao(weight, "Int8Tensor", (1, 32)))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return shutil.copytree(whole, tmp_path / "model")


def changed(
    folder: Path,
    tensors: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
    header: Callable[[dict[str, str]], object] = lambda header: None,
) -> None:
    path, found = folder / "model.safetensors", load_file(folder / "model.safetensors")
    with safe_open(path, "pt") as opened:
        said = dict(opened.metadata())
    tensors(found)
    header(said)
    save_file(found, path, said)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "Int4TilePackedTo4dTensor",
            "of the class 'Int4TilePackedTo4dTensor', which is not read; there are Int8Tensor",
        ),
        ("Int4Tensor", "of the class 'Int4Tensor'"),
        ("NVFP4Tensor", "of the class 'NVFP4Tensor'"),
    ],
)
def test_a_class_that_is_not_read_is_named(folder: Path, kind: str, said: str) -> None:
    other = json.dumps({"_type": kind, "_data": {"block_size": [1, 32]}})
    changed(folder, header=lambda header: header.update({f"{NAME}.weight": other}))
    with pytest.raises(SpecError, match=f"quantized as 'torchao': {NAME}.weight is {said}"):
        open_model(folder)


@pytest.mark.parametrize("said", [None, "", "[" * 100_000, "[]", "7", '{"_type": ["Int8Tensor"]}'])
def test_a_header_that_says_nothing_is_refused(folder: Path, said: str | None) -> None:
    def change(header: dict[str, str]) -> None:
        header.pop(f"{NAME}.weight")
        header.update({} if said is None else {f"{NAME}.weight": said})

    changed(folder, header=change)
    with pytest.raises(SpecError, match=f"{NAME}.weight is of the class"):
        open_model(folder)


@pytest.mark.parametrize("data", [{}, {"block_size": [32]}, {"block_size": [0, 32]}, {"block_size": [1, 64]}])
def test_blocks_that_do_not_fit_are_refused(folder: Path, data: dict[str, object]) -> None:
    other = json.dumps({"_type": "Int8Tensor", "_data": data})
    changed(folder, header=lambda header: header.update({f"{NAME}.weight": other}))
    with pytest.raises(SpecError, match=r"block_size is|fits no blocks"):
        open_model(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{NAME}._weight_scale"), "down_proj has no _weight_scale"),
        (lambda t: t.pop(f"{NAME}._weight_qdata"), "keys that nothing takes"),
        (lambda t: t.update({f"{NAME}._weight_qdata": t[f"{NAME}._weight_qdata"].float()}), "is stored as F32"),
        (lambda t: t.update({f"{NAME}._weight_act_pre_scale": torch.ones(1)}), "nothing takes: .*act_pre_scale"),
        (lambda t: t[f"{NAME}._weight_scale"].fill_(float("nan")), "scales that are no numbers"),
    ],
)
def test_parts_that_are_missing_or_lie_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    changed(folder, tensors=change)
    with pytest.raises(SpecError, match=said):
        oracle.with_declared(folder)


def test_scales_of_activations_are_left_alone(folder: Path) -> None:
    before = oracle.with_declared(folder).model.state_dict()
    changed(folder, lambda tensors: tensors.update({f"{NAME}._weight_act_quant_scale": torch.full((1,), 7.0)}))
    after = oracle.with_declared(folder).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
