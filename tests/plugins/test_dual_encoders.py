"""Tiny CLIP and SigLIP give what transformers gives, in any company; what is no such model is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.dual_encoder import DualEncoderModel, build_dual_encoder
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_plugins.loading.registry import PluginError, Registry
from opsin_plugins.spec import SpecError, VisualItem
from support import oracle, tiny_dual

Make = Callable[..., Any]
PROCESSORS = {
    "clip": hf.CLIPImageProcessorPil,
    "siglip": hf.SiglipImageProcessorPil,
    "siglip2": hf.Siglip2ImageProcessorPil,
}
PICTURES = [
    oracle.picture(i, height, width) for i, (height, width) in enumerate([(28, 28), (50, 40), (9, 11), (64, 30)])
]
CLIP_IDS = [[0, 5, 6, 7, 1], [0, 1], [0, 9, 1, 1], [0, *range(20, 34), 1], [0, 515, 30, 1]]
SIGLIP_IDS = [[5, 6, 1, *[0] * 9], [*range(4, 16)], [1, *[0] * 11]]


def opened(make: Make, directory: Path, **changes: Any) -> tuple[Any, OpenDualEncoder, DualEncoderModel]:
    theirs = make(**changes)
    found = open_served(tiny_dual.save(theirs, directory))
    assert isinstance(found, OpenDualEncoder)
    ours = build_dual_encoder(found.spec, found.family.builder, found.registry)
    load_weights(ours, found.family.weights(found.spec), found.files)
    return theirs, found, ours


@torch.no_grad()
def pictures(ours: DualEncoderModel, items: list[VisualItem]) -> Tensor:
    return ours.embed_pictures(torch.from_numpy(np.concatenate([item.pixels for item in items])), items)


@torch.no_grad()
def texts(ours: DualEncoderModel, ids: list[list[int]]) -> Tensor:
    return ours.embed_texts(torch.tensor([i for text in ids for i in text]), [len(text) for text in ids])


@pytest.mark.parametrize(
    ("make", "changes", "ids"),
    [
        (tiny_dual.clip, {}, CLIP_IDS),
        (tiny_dual.clip, {"eos_token_id": 2, "hidden_act": "gelu"}, CLIP_IDS),  # as before 2023: the largest id
        (tiny_dual.siglip, {}, SIGLIP_IDS),
        (tiny_dual.siglip2, {}, SIGLIP_IDS),
    ],
    ids=["clip", "clip-old", "siglip", "siglip2"],
)
def test_embeddings_are_those_of_transformers(make: Make, changes: Any, ids: list[list[int]], tmp_path: Path) -> None:
    theirs, found, ours = opened(make, tmp_path / "model", **changes)
    processor = PROCESSORS[found.spec.family]
    prepared = processor.from_pretrained(tmp_path / "model")(
        images=[Image.fromarray(p) for p in PICTURES], return_tensors="pt"
    )
    expected = F.normalize(theirs.get_image_features(**prepared).pooler_output, dim=-1)
    items = [found.family.preprocess(picture, found.spec) for picture in PICTURES]
    together = pictures(ours, items)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
    for item, one in zip(items, together, strict=True):
        torch.testing.assert_close(pictures(ours, [item])[0], one, atol=1e-6, rtol=0)
    together = texts(ours, ids)
    for one, text in zip(together, ids, strict=True):
        said = theirs.get_text_features(input_ids=torch.tensor([text])).pooler_output[0]
        torch.testing.assert_close(one, F.normalize(said, dim=0), atol=1e-5, rtol=0)
        torch.testing.assert_close(texts(ours, [text])[0], one, atol=1e-6, rtol=0)
    assert found.spec.dimensions == together.shape[1] == expected.shape[1]


def test_another_package_may_bring_a_pair(tmp_path: Path) -> None:
    """Found by what it claims, as an architecture is: the longest name wins, and one claimed twice is nobody's."""
    directory = tiny_dual.save(tiny_dual.clip(), tmp_path / "model")
    files = read_model_files(directory)
    group, built_in = "opsin.dual_encoders", "opsin_plugins.families.dual_encoders"
    own = [metadata.EntryPoint("clip", f"{built_in}.clip:Clip", group)]
    longer = metadata.EntryPoint("clip.clip_vision_model", f"{built_in}.siglip:Siglip", group)
    for points, expected in ((own, "clip"), ([*own, longer], "siglip")):
        registry = Registry(entry_points=lambda asked, points=points: points if asked == group else [])
        found = registry.dual_encoder(files)
        assert found is not None
        assert found.name == expected
    twice = Registry(entry_points=lambda asked: [*own, *own] if asked == group else [])
    with pytest.raises(PluginError, match="dual encoder 'clip' is claimed by 2 distributions"):
        twice.dual_encoder(files)


def _weights(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = next(directory.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    weight_map = dict.fromkeys(tensors, path.name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _without_text(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if key.startswith("text_model.")]:
        del tensors[key]


def _wrong_shape(tensors: dict[str, Tensor]) -> None:
    tensors["text_projection.weight"] = torch.zeros(7, 5)


def _unknown(tensors: dict[str, Tensor]) -> None:
    tensors["audio_model.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_text, "40 weights that no key fills: text.final_norm.bias"),
        (_wrong_shape, "text_projection.weight"),
        (_unknown, "audio_model.weight"),
    ],
)
def test_weights_that_are_not_its_own_are_told_by_name(change: Any, says: str, tmp_path: Path) -> None:
    _, found, _ = opened(tiny_dual.clip, tmp_path / "model")
    _weights(tmp_path / "model", change)
    found = open_served(tmp_path / "model")
    assert isinstance(found, OpenDualEncoder)
    ours = build_dual_encoder(found.spec, found.family.builder, found.registry, device="meta")
    with pytest.raises(SpecError, match=says):
        load_weights(ours, found.family.weights(found.spec), found.files)


@pytest.mark.parametrize(
    ("make", "section", "changes", "says"),
    [
        (tiny_dual.clip, "text_config", {"hidden_size": 33}, "width 33 cannot have 2 heads"),
        (tiny_dual.clip, "text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is too large"),
        (tiny_dual.clip, "text_config", {"max_position_embeddings": 10**9}, "max_position_embeddings .* is too large"),
        (tiny_dual.clip, "text_config", {"eos_token_id": [1, 2]}, "eos_token_id must be an integer"),
        (tiny_dual.clip, "text_config", {"eos_token_id": 10**6}, "eos_token_id 1000000 is outside of the 516"),
        (tiny_dual.clip, "text_config", {"hidden_act": "mish"}, "hidden_act 'mish' is not one of"),
        (
            tiny_dual.clip,
            "vision_config",
            {"image_size": 42},
            "a tower of 42 pixels a side needs pictures of that size",
        ),
        (tiny_dual.siglip, "vision_config", {"vision_use_head": False}, "nothing pools a picture's features"),
        (tiny_dual.siglip, "text_config", {"projection_size": 48}, "pictures have 32 values and texts 48"),
        (tiny_dual.siglip, "text_config", {"pad_token_id": 99}, "padding token 99 is outside of the 36"),
    ],
)
def test_configurations_that_cannot_be_served_are_refused(
    make: Make, section: str, changes: Any, says: str, tmp_path: Path
) -> None:
    directory = tiny_dual.save(make(), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    tiny_dual.edit(directory, "config.json", **{section: {**config[section], **changes}})
    with pytest.raises(SpecError, match=says):
        open_served(directory)


def test_a_half_alone_is_refused_by_name(tmp_path: Path) -> None:
    directory = tiny_dual.save(tiny_dual.clip(), tmp_path / "model")
    with pytest.raises(SpecError, match=r"model_type 'clip' .a dual encoder's, which is served for its embeddings"):
        open_model(directory)
    tiny_dual.edit(directory, "config.json", model_type="clip_vision_model")
    with pytest.raises(SpecError, match="no architecture plugin claims model_type 'clip_vision_model'"):
        open_served(directory)
