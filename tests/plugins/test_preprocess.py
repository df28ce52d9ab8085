"""Pixels against the PIL processors, and positions against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from opsin_plugins.architectures.llava import Llava
from opsin_plugins.architectures.qwen2_vl import Qwen2VL
from opsin_plugins.images import smart_size
from opsin_plugins.spec import ImageBudget, ModelFiles, SpecError
from support import oracle, tiny

PUBLISHED = {
    "qwen2_vl": (Qwen2VL(), {"min_pixels": 3136, "max_pixels": 28 * 28 * 64, "patch_size": 14, "merge_size": 2}),
    "llava": (Llava(), {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "resample": 3}),
}
SIZES = [(336, 336), (100, 400), (401, 97), (28, 28), (1000, 30), (57, 56), (333, 335), (5, 9)]


def spec_of(family: str):
    config = {
        "qwen2_vl": {**tiny.qwen2_vl().config.to_dict()},
        "llava": {**tiny.llava().config.to_dict()},
    }[family]
    vision = {"qwen2_vl": {"patch_size": 14}, "llava": {"patch_size": 14, "image_size": 336}}[family]
    config["vision_config"] = {**config["vision_config"], **vision}
    architecture, preprocessor = PUBLISHED[family]
    return architecture, architecture.spec(ModelFiles(Path(), json.loads(json.dumps(config)), preprocessor))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", list(PUBLISHED))
def test_pixels_equal_the_pil_processor(family: str, size: tuple[int, int]) -> None:
    architecture, spec = spec_of(family)
    image = oracle.picture(size[0], *size)
    (item,) = architecture.preprocess([image], spec, ImageBudget())
    ours = oracle.normalised(item, spec.vision)
    if family == "qwen2_vl":
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 64})
        given_ = processor(images=Image.fromarray(image), return_tensors="pt")
        theirs = given_["pixel_values"].view(-1, 3, 2, 14, 14)[:, :, 0]
        assert tuple(given_["image_grid_thw"][0].tolist()) == item.grid
    else:
        processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
        whole = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        theirs = whole.view(3, 24, 14, 24, 14).permute(1, 3, 0, 2, 4).reshape(-1, 3, 14, 14)
    std = torch.tensor(spec.vision.std)[:, None, None]
    assert ((ours - theirs).abs() * std).max() <= 2 / 255 + 1e-6


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([16, 28, 56]), st.integers(1, 64), st.integers(64, 900)
)
@settings(max_examples=300, deadline=None)
def test_smart_sizes_are_the_published_ones(height: int, width: int, factor: int, low: int, high: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    limits = (low * factor**2, high * factor**2)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(SpecError, match="side ratio"):
            smart_size(height, width, factor, *limits)
        return
    assert smart_size(height, width, factor, *limits) == smart_resize(height, width, factor, *limits)


@pytest.mark.parametrize("change", [{"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 0.5}])
@pytest.mark.parametrize("family", list(PUBLISHED))
def test_a_preprocessor_that_leaves_a_step_out_is_refused(family: str, change: dict[str, object]) -> None:
    config = json.loads(json.dumps({"qwen2_vl": tiny.qwen2_vl, "llava": tiny.llava}[family]().config.to_dict()))
    files = ModelFiles(Path(), config, {**tiny.PREPROCESSOR[family], **change})
    with pytest.raises(SpecError, match=next(iter(change))):
        PUBLISHED[family][0].spec(files)


def test_a_budget_shrinks_what_can_be_resized() -> None:
    image = oracle.picture(0, 400, 400)
    for family, shrinks in (("qwen2_vl", True), ("llava", False)):
        architecture, spec = spec_of(family)
        full, low = (architecture.preprocess([image], spec, b)[0] for b in (ImageBudget(), ImageBudget(20_000)))
        assert (low.rows < full.rows) is shrinks
        assert low.grid[1] * low.grid[2] * 196 <= 20_000 or not shrinks


@given(
    st.lists(st.one_of(st.integers(1, 30), st.tuples(st.integers(20, 90), st.integers(20, 90))), min_size=1, max_size=6)
)
@settings(max_examples=60, deadline=None)
def test_positions_equal_transformers(parts: list) -> None:
    theirs, (architecture, spec) = tiny.qwen2_vl(), tiny_qwen_spec()
    ids, images = [], []
    for part in parts:
        if isinstance(part, int):
            ids += [5] * part
        else:
            ids += [152, tiny.IMAGE_TOKEN, 153]
            images.append(oracle.picture(1, *part))
    items = architecture.preprocess(images, spec, ImageBudget())
    expanded = architecture.expand(ids, items, spec)
    ours, delta = architecture.positions(expanded, items, spec)
    tokens = torch.from_numpy(expanded.ids).long()[None]
    grids = torch.tensor([i.grid for i in items]) if items else None
    expected, expected_delta = theirs.model.get_rope_index(
        tokens, (tokens == tiny.IMAGE_TOKEN).int(), image_grid_thw=grids
    )
    assert np.array_equal(ours, expected[:, 0].numpy())
    assert delta == int(expected_delta)


def tiny_qwen_spec():
    config = json.loads(json.dumps(tiny.qwen2_vl().config.to_dict()))
    architecture = Qwen2VL()
    return architecture, architecture.spec(ModelFiles(Path(), config, tiny.PREPROCESSOR["qwen2_vl"]))


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_placeholders_and_images_must_be_as_many(family: str) -> None:
    architecture, spec = spec_of(family)
    items = architecture.preprocess([oracle.picture(0, 60, 60)], spec, ImageBudget())
    with pytest.raises(SpecError, match="2 image placeholders for 1 images"):
        architecture.expand([1, tiny.IMAGE_TOKEN, tiny.IMAGE_TOKEN], items, spec)


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_lora_groups_cover_the_adaptable_linears_and_nothing_else(family: str) -> None:
    architecture, spec = spec_of(family)
    theirs = {"qwen2_vl": tiny.qwen2_vl, "llava": tiny.llava}[family]()
    linears = {n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    groups = architecture.lora_groups(spec)
    for name in linears:
        owners = [g for g, pattern in groups.items() if pattern.fullmatch(name)]
        unused = family == "llava" and "encoder.layers.3." in name  # past the features that are taken
        assert len(owners) == (0 if unused else 1), (name, owners)
