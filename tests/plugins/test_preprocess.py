"""Pixels against the PIL processors, and positions against transformers' own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from opsin_plugins.families.architectures.qwen2_vl import Qwen2VL
from opsin_plugins.families.encoders.pixtral import Pixtral
from opsin_plugins.families.encoders.siglip import Siglip
from opsin_plugins.families.images import smart_size
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import U8, Architecture, ImageBudget, ModelFiles, ModelSpec, SpecError, VisualItem
from support import oracle, published, tiny
from support.inputs import whole

SIGLIP, PIXTRAL = Siglip(), Pixtral()

# The processors as the published directories configure them; what is not said there are the class's own defaults.
NAMES = {
    "qwen2_vl": "Qwen2-VL-2B-Instruct",
    "qwen2_5_vl": "Qwen2.5-VL-3B-Instruct",
    "qwen3_vl": "Qwen3-VL-2B-Instruct",
    "llava": "llava-1.5-7b-hf",
    "llava_next": "llava-v1.6-mistral-7b-hf",
    "llava.pixtral": "pixtral-12b",
    "idefics3": "SmolVLM-256M-Instruct",
    "mllama": "Llama-3.2-11B-Vision-Instruct",
    "qwen.visual": "Qwen-VL-Chat",
}
PATCHES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}
SIZES = [(336, 336), (100, 400), (401, 97), (28, 28), (1000, 34), (57, 56), (333, 335), (5, 9), (1300, 900)]
NARROW = [(600, 7), (7, 600), (300, 1), (1, 300), (2, 900), (1, 1)]


@cache
def published_family(family: str) -> tuple[Architecture, ModelSpec]:
    files = published.model_files(NAMES[family])
    if family in PATCHES:  # (noise of full size would take a minute)
        limits = {"size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}}
        rest = {k: v for k, v in files.preprocessor.items() if k not in ("min_pixels", "max_pixels")}
        files = replace(files, preprocessor=rest | limits)
    architecture = Registry().architecture(files)
    return architecture, architecture.spec(files)


def their_pixels(family: str, spec: ModelSpec, image: U8) -> torch.Tensor:
    """F32 [t, 3, H, W] of the published processor."""
    picture, given = Image.fromarray(image), published.model_files(NAMES[family]).preprocessor
    if (p := PATCHES.get(family)) is not None:
        normal = {"image_mean": spec.vision.mean, "image_std": spec.vision.std}
        processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}, patch_size=p, **normal
        )
        found = processor(images=picture, return_tensors="pt")
        _, rows, columns = found["image_grid_thw"][0].tolist()
        flat = found["pixel_values"].view(rows // 2, columns // 2, 2, 2, 3, 2, p, p)[:, :, :, :, :, 0]
        return flat.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * p, columns * p)
    if family == "qwen.visual":  # its own code: PIL to 448 x 448, then CLIP's mean and deviation
        values = np.asarray(picture.resize((448, 448), Image.Resampling.BICUBIC), np.float32) / 255
        normal = (values - np.float32(spec.vision.mean)) / np.float32(spec.vision.std)
        return torch.from_numpy(normal).permute(2, 0, 1)[None]
    kinds = {
        "llava": CLIPImageProcessorPil,
        "llava_next": LlavaNextImageProcessorPil,
        "llava.pixtral": PixtralImageProcessorPil,
        "idefics3": Idefics3ImageProcessorPil,
        "mllama": MllamaImageProcessorPil,
    }
    known = {k: v for k, v in given.items() if k not in ("image_processor_type", "processor_class", "rescale_factor")}
    found = kinds[family](**known)(images=picture, return_tensors="pt")
    pixels = found["pixel_values"].flatten(0, -4)
    return pixels[: found["num_tiles"][0][0]] if family == "mllama" else pixels


@pytest.mark.parametrize("size", SIZES + NARROW)
@pytest.mark.parametrize("family", list(NAMES))
def test_pixels_equal_the_pil_processor(family: str, size: tuple[int, int]) -> None:
    architecture, spec = published_family(family)
    image = oracle.picture(size[0], *size)
    if family in PATCHES and max(size) > 200 * min(size):  # transformers refuses it too
        with pytest.raises(SpecError, match="side ratio over 200"):
            architecture.preprocess([image], spec, ImageBudget())
        return
    (item,) = architecture.preprocess([image], spec, ImageBudget())
    ours, theirs = whole(item, spec), their_pixels(family, spec, image)
    assert ours.shape == theirs.shape
    std = torch.tensor(spec.vision.std)[:, None, None]
    assert ((ours - theirs).abs() * std).max() <= 2 / 255 + 1e-6


@pytest.mark.parametrize("size", [(384, 384), (100, 401), (5, 9)])
def test_siglip_and_mistral3_pixels_equal_theirs(size: tuple[int, int]) -> None:
    image = oracle.picture(1, *size)
    files = published.model_files("siglip-so400m-patch14-384")
    tower = SIGLIP.spec(files.config["vision_config"], files.preprocessor)
    rules = SIGLIP.image(tower, files.config["vision_config"], files.preprocessor)
    pixels, grid = SIGLIP.preprocess(image, rules, ImageBudget())
    given = SiglipImageProcessorPil(size={"height": 384, "width": 384}, resample=3)(
        images=Image.fromarray(image), return_tensors="pt"
    )["pixel_values"][0]
    side = 378  # 27 patches of 14: a convolution leaves the last 6 pixels
    theirs = given[:, :side, :side].view(3, 27, 14, 27, 14).permute(1, 3, 0, 2, 4).reshape(-1, 588)
    assert grid == (1, 27, 27)
    assert (torch.from_numpy(pixels).float() / 255 - (theirs / 2 + 0.5)).abs().max() <= 2 / 255
    rules = replace(rules, resize="longest", longest_edge=1540, patch=14, merge=2)
    pixels, (_, rows, columns) = PIXTRAL.preprocess(image, rules, ImageBudget())
    processor = PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size={"height": 28, "width": 28})
    found = processor(images=Image.fromarray(image), return_tensors="pt")
    assert found["image_sizes"][0].tolist() == [rows * 14, columns * 14]


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
@pytest.mark.parametrize("family", [name for name in NAMES if name != "qwen.visual"])
def test_a_preprocessor_that_leaves_a_step_out_is_refused(family: str, change: dict[str, object]) -> None:
    files = published.model_files(NAMES[family])
    changed = replace(files, preprocessor={**files.preprocessor, **change})
    with pytest.raises(SpecError, match=next(iter(change))):
        Registry().architecture(changed).spec(changed)


@pytest.mark.parametrize("family", list(NAMES))
def test_a_budget_shrinks_what_can_be_resized(family: str) -> None:
    architecture, spec = published_family(family)
    image = oracle.picture(0, 700, 900)

    def prepared(budget: ImageBudget) -> VisualItem:
        return architecture.preprocess([image], spec, budget)[0]

    full = prepared(ImageBudget())
    pixels = full.pixels.size // 3
    for low in (prepared(ImageBudget(max_pixels=pixels // 2)), prepared(ImageBudget(max_tokens=full.tokens // 2))):
        assert (low.tokens < full.tokens) is spec.image.resizable
    smallest = prepared(ImageBudget(1, 1))
    assert 0 < smallest.tokens <= full.tokens
    assert prepared(ImageBudget(10**9, 10**9)).tokens == full.tokens


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300_000), st.sampled_from(list(NAMES)))
@settings(max_examples=60, deadline=None)
def test_a_budget_is_kept_unless_the_smallest_form_is_larger(high: int, wide: int, limit: int, family: str) -> None:
    architecture, spec = published_family(family)
    if max(high, wide) > 4 * min(high, wide):
        return  # (of a narrow picture one side cannot shrink below a patch)
    image = np.zeros((high, wide, 3), np.uint8)
    least, kept = (architecture.preprocess([image], spec, ImageBudget(n))[0] for n in (1, limit))
    extra = (
        spec.image.size[0] ** 2 if family in ("llava_next", "idefics3") else 0
    )  # the whole picture, beside its tiles
    assert kept.pixels.size // 3 <= max(limit + extra, least.pixels.size // 3)


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
    expanded = architecture.expand(ids, items, spec, tiny.encode)
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


@pytest.mark.parametrize("family", list(NAMES))
def test_placeholders_and_images_must_be_as_many(family: str) -> None:
    architecture, spec = published_family(family)
    items = architecture.preprocess([oracle.picture(0, 60, 60)], spec, ImageBudget())
    with pytest.raises(SpecError, match="2 image placeholders for 1 images"):
        architecture.expand([1, spec.image_token, spec.image_token], items, spec, lambda text: [7])


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "qwen"])
def test_lora_groups_cover_the_adaptable_linears_and_nothing_else(family: str, tmp_path: Path) -> None:
    theirs = tiny.FAMILIES[family].make()
    ours = oracle.saved(theirs, tmp_path)
    linears = {n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    groups, selects = ours.architecture.lora_groups(ours.spec), hasattr(theirs.config, "vision_feature_layer")
    for name in linears:
        owners = [g for g, pattern in groups.items() if pattern.fullmatch(name)]
        # Past the features that are taken, and what pools a picture into one vector.
        unused = selects and ("encoder.layers.3." in name or "vision_tower.head." in name)
        assert len(owners) == (0 if unused else 1), (name, owners)


def test_tiles_of_a_tower_whose_side_is_no_multiple_of_its_patch() -> None:
    """SigLIP's convolution leaves the last pixels of each tile, and so does what counts its tokens."""
    files = published.model_files("llava-v1.6-mistral-7b-hf")
    vision = {"model_type": "siglip_vision_model", "image_size": 30, "patch_size": 14, "hidden_size": 16}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    canvases = [[30, 60], [60, 30], [60, 60]]
    changes = {"vision_config": vision, "vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    sizes = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
    files = replace(
        files,
        config={**files.config, **changes, "image_grid_pinpoints": canvases},
        preprocessor={**files.preprocessor, **sizes, "image_grid_pinpoints": canvases},
    )
    architecture = Registry().architecture(files)
    spec = architecture.spec(files)
    (item,) = architecture.preprocess([oracle.picture(0, 60, 60)], spec, ImageBudget())
    assert item.tokens == 2 * 2 + 4 * (4 + 1)
    (item,) = architecture.preprocess([oracle.picture(0, 60, 60)], spec, ImageBudget(max_tokens=item.tokens))
    assert item.tokens == 24
