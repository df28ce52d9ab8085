"""Where a directory says how its pictures are prepared, and what is left out or null: transformers' reading decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import ImageBudget, ModelSpec, SpecError
from support import oracle, tiny
from support.inputs import whole

TYPES = {
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "qwen3_vl": "Qwen2VLImageProcessorFast",
    "llava": "CLIPImageProcessor",
    "llava_siglip": "SiglipImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "llava.pixtral": "PixtralImageProcessorFast",
    "mistral3": "PixtralImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "mllama": "MllamaImageProcessor",
}
WITH_PICTURES = [name for name, family in tiny.FAMILIES.items() if family.preprocessor]
PICTURE = oracle.picture(5, 37, 61)
# Sizes of tiny models, which no default fits: left out, both sides must refuse or disagree with the tower.
SIZED = ("size", "crop_size", "patch_size", "max_image_size", "image_grid_pinpoints", "max_image_tiles")

APART = {
    # Without a type transformers takes LLaVA's own class, whatever the tower.
    ("image_processor_type", "llava_siglip"),
    ("image_processor_type", "llava.pixtral"),
    # Its processor gives the image processor the size of patches anew.
    ("patch_size", "llava.pixtral"),
    ("patch_size", "mistral3"),
}


def settings(family: str) -> dict[str, Any]:
    """As published: everything said, in the class's own names."""
    mean, std = ([0.4, 0.45, 0.5], [0.3, 0.25, 0.2])
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3}
    own = dict(tiny.FAMILIES[family].preprocessor)
    return {**common, "image_mean": mean, "image_std": std, **own, "image_processor_type": TYPES[family]}


@pytest.fixture(scope="module", params=WITH_PICTURES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    family = request.param
    folder = tiny.save(tiny.FAMILIES[family].make(), tmp_path_factory.mktemp(family.replace(".", "_")))
    (folder / "preprocessor_config.json").unlink()
    return family, folder


def place(folder: Path, **files: Mapping[str, Any]) -> None:
    for name in ("preprocessor_config", "processor_config", "video_preprocessor_config"):
        (folder / f"{name}.json").unlink(missing_ok=True)
        if name in files:
            (folder / f"{name}.json").write_text(json.dumps(files[name]))


def ours(folder: Path) -> tuple[torch.Tensor, ModelSpec]:
    """F32 [t, 3, H, W] as it was before it was normalised, 0 to 1."""
    opened = open_model(folder)
    (item,) = opened.architecture.preprocess([PICTURE], opened.spec, ImageBudget())
    return whole(item, opened.spec), opened.spec


def theirs(folder: Path, spec: ModelSpec) -> torch.Tensor:
    assert spec.vision is not None
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    found, p = processor(images=Image.fromarray(PICTURE), return_tensors="pt"), spec.vision.patch
    pixels = found["pixel_values"]
    if "image_grid_thw" in found:
        _, rows, columns = found["image_grid_thw"][0].tolist()
        flat = pixels.view(rows // 2, columns // 2, 2, 2, 3, 2, p, p)[:, :, :, :, :, 0]
        return flat.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * p, columns * p)
    pixels = pixels.flatten(0, -4)
    return pixels[: found["num_tiles"][0][0]] if "num_tiles" in found else pixels


def assert_equal(folder: Path) -> None:
    mine, spec = ours(folder)
    expected = theirs(folder, spec)
    assert mine.shape == expected.shape
    assert spec.vision is not None
    assert ((mine - expected).abs() * torch.tensor(spec.vision.std)[:, None, None]).max() <= 2 / 255 + 1e-6


def test_each_place_and_their_order(directory: tuple[str, Path]) -> None:
    """transformers 5 saves them inside processor_config.json, and asks there first."""
    family, folder = directory
    said = settings(family)
    other = {**said, "image_mean": [0.1, 0.1, 0.1], "resample": 2}
    for files in (
        {"preprocessor_config": said},
        {"processor_config": {"processor_class": "SomeProcessor", "image_processor": said}},
        {"processor_config": {"image_processor": said}, "preprocessor_config": other},
        {"processor_config": {"image_token": "<image>"}, "preprocessor_config": said},
        {"preprocessor_config": said, "video_preprocessor_config": {**other, "size": {"shortest_edge": 1}}},
    ):
        place(folder, **files)
        assert_equal(folder)


def test_what_is_left_out_is_the_classs_own(directory: tuple[str, Path]) -> None:
    family, folder = directory
    said = settings(family)
    for key in said:
        if key not in SIZED and (key, family) not in APART:
            place(folder, preprocessor_config={k: v for k, v in said.items() if k != key})
            assert_equal(folder)


def test_null_is_what_transformers_makes_of_it(directory: tuple[str, Path]) -> None:
    """A step that is not done, a number that is missing; equal pixels where it takes one, else a refusal."""
    family, folder = directory
    said = settings(family)
    place(folder, preprocessor_config=said)
    tower = ours(folder)[1]
    refused = []
    for key in (*said, "do_pad", "do_center_crop", "do_convert_rgb", "do_image_splitting"):
        if (key, family) in APART:
            continue
        place(folder, preprocessor_config={**said, key: None})
        try:
            theirs(folder, tower)
        except Exception:  # whatever its class raises
            with pytest.raises(SpecError):
                ours(folder)
            refused.append(key)
            continue
        try:
            assert_equal(folder)
        except SpecError:  # (a step that is always done here)
            refused.append(key)
    always = {"do_resize", "do_rescale", "do_normalize", "do_center_crop"}
    assert {key for key in refused if key.startswith("do_")} <= always | {"do_pad"}
    assert {"image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize"} <= set(refused)


def test_sizes_in_their_other_forms(directory: tuple[str, Path]) -> None:
    family, folder = directory
    forms: dict[str, list[dict[str, Any]]] = {
        "llava": [
            {"size": 28},
            {"crop_size": 28},
            {"crop_size": {"height": 28.0, "width": 28.0}},
            {"size": {"height": 28, "width": 28}},
            {"size": {"height": 28, "width": 28}, "do_center_crop": False},
            {"size": {"shortest_edge": 40}},
            {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
            {"image_processor_type": "LlavaImageProcessor"},
        ],
        "qwen2_vl": [
            {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 256, "longest_edge": 1024}},
            {"min_pixels": None, "max_pixels": None, "size": None},
            {"min_pixels": 256.0, "max_pixels": 1024.0},
            {"size": {"shortest_edge": 99999, "longest_edge": 99999}},  # (min_pixels and max_pixels count)
            {"min_pixels": None, "size": {"shortest_edge": 256, "longest_edge": 1}},
        ],
        "llava.pixtral": [{"size": 40}, {"size": {"height": 40, "width": 40}}],
        "llava_next": [{"size": {"height": 28, "width": 28}}],
        "mllama": [{"size": 20}, {"max_image_tiles": 2}],
        "idefics3": [{"do_image_splitting": False}],
    }
    for change in forms.get(family, []):
        place(folder, preprocessor_config={**settings(family), **change})
        assert_equal(folder)


@pytest.mark.parametrize("name", ["Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast"])
def test_a_class_that_transformers_renamed(name: str, tmp_path: Path) -> None:
    """Before Qwen2.5-VL was in a release its files named a class that later became Qwen2-VL's."""
    tiny.save(tiny.FAMILIES["qwen2_5_vl"].make(), tmp_path)
    place(tmp_path, preprocessor_config=settings("qwen2_5_vl"))
    expected = ours(tmp_path)
    place(tmp_path, preprocessor_config={**settings("qwen2_5_vl"), "image_processor_type": name})
    found = ours(tmp_path)
    assert found[1] == expected[1]
    assert torch.equal(found[0], expected[0])


def test_a_square_size_is_cropped_as_well(tmp_path: Path) -> None:
    """transformers cuts the middle out of what it has made square; the tower would then refuse it."""
    tiny.save(tiny.FAMILIES["llava"].make(), tmp_path)
    side = settings("llava")["crop_size"]["height"]
    square = {"size": {"height": side, "width": side}, "do_center_crop": True}
    place(tmp_path, preprocessor_config={**settings("llava"), **square, "crop_size": side})
    ours(tmp_path)
    left_out = {name: value for name, value in settings("llava").items() if name != "crop_size"}  # then it is 224
    for cropped in ({**left_out, "crop_size": side // 2}, left_out):
        place(tmp_path, preprocessor_config={**cropped, **square})
        with pytest.raises(SpecError, match="needs pictures of that size"):
            ours(tmp_path)


REFUSED = [
    ({"do_resize": False}, "do_resize"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
    ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is not supported"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order"),
    ({"crop_to_patches": True}, "crop_to_patches"),
    ({"resample": 9}, "resample 9"),
    ({"image_mean": "half"}, "image_mean"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_what_would_change_pixels_is_refused_by_name(
    directory: tuple[str, Path], change: dict[str, Any], named: str
) -> None:
    family, folder = directory
    place(folder, preprocessor_config={**settings(family), **change})
    with pytest.raises(SpecError, match=named):
        ours(folder)


@pytest.mark.parametrize("change", [{"do_pad": True}, {"do_center_crop": False}, {"size": {"longest_edge": 28}}])
def test_what_only_llava_could_do_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    tiny.save(tiny.FAMILIES["llava"].make(), tmp_path)
    place(tmp_path, preprocessor_config={**settings("llava"), **change})
    with pytest.raises(SpecError, match=next(iter(change))):
        ours(tmp_path)


def test_settings_that_change_nothing_are_passed_over(directory: tuple[str, Path]) -> None:
    family, folder = directory
    more = {"processor_class": "X", "do_convert_rgb": None, "device": None, "data_format": "channels_first", "foo": 3}
    place(folder, preprocessor_config={**settings(family), **more})
    assert_equal(folder)


def test_settings_that_are_nowhere_are_not_guessed(directory: tuple[str, Path]) -> None:
    _, folder = directory
    for files in ({}, {"video_preprocessor_config": {"size": 28}}, {"processor_config": {"image_token": "<image>"}}):
        place(folder, **files)
        with pytest.raises(SpecError, match=r"nothing says how pictures are prepared .*preprocessor_config.json"):
            ours(folder)
        with pytest.raises(OSError, match="Can't load image processor"):
            AutoImageProcessor.from_pretrained(folder, backend="pil")


def test_the_other_family_of_limits_is_refused(tmp_path: Path) -> None:
    tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path)
    place(
        tmp_path,
        preprocessor_config={**settings("qwen2_vl"), "min_pixels": None, "max_pixels": None, "size": {"height": 9}},
    )
    with pytest.raises(SpecError, match="min_pixels"):
        ours(tmp_path)
    place(tmp_path, preprocessor_config={**settings("qwen2_vl"), "merge_size": 3})
    with pytest.raises(SpecError, match=r"merge_size 3, but the vision configuration says 2"):
        ours(tmp_path)
