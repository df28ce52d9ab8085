"""Videos against transformers: which frames, their size, their pixels, where their tokens stand, and the logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.video_utils import VideoMetadata

from opsin_plugins.families.encoders.qwen2_vl import Qwen2VLEncoder
from opsin_plugins.families.encoders.qwen3_vl import Qwen3VLEncoder
from opsin_plugins.families.videos import frame_size, plan_video, timestamps
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import SpecError, TakesVideos, VideoBudget, VideoSource, VideoSpec
from support import oracle, published, tiny, videos

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VIDEO, IMAGE = 151, tiny.IMAGE_TOKEN


def declared(family: str, **settings: Any) -> VideoSpec:
    """As the encoder reads a processor's settings, patches of 4."""
    encoder = Qwen3VLEncoder() if family == "qwen3_vl" else Qwen2VLEncoder()
    tower = replace(TOWER[family], mean=(0.5,) * 3, std=(0.5,) * 3)
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return encoder.video(tower, {}, {"patch_size": 4, **halves, **settings})


TOWER = {
    name: encoder.spec({"patch_size": 4, "depth": 30}, tiny.PREPROCESSOR["qwen2_vl"])
    for name, encoder in (("qwen2_vl", Qwen2VLEncoder()), ("qwen3_vl", Qwen3VLEncoder()))
}


def metadata(count: int, fps: float) -> dict[str, Any]:
    return {"total_num_frames": count, "fps": fps, "frames_indices": list(range(count))}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("wish", [{"fps": 2}, {"fps": 0.7}, {"fps": 30.0}, {"num_frames": 8}, {"num_frames": 5}])
def test_the_frames_are_those_of_transformers(family: str, wish: dict[str, Any]) -> None:
    """(Its rounding gives one past the end for some numbers, which it then fails to read.)"""
    theirs, spec = videos.processor(family), declared(family)
    for fps in (8.0, 24.0, 29.97, 60.0):
        for total in (8, 9, 31, 100, 733, 20_000):
            about = VideoMetadata(**metadata(total, fps))
            expected = theirs.sample_frames(about, **wish)
            plan = plan_video(VideoSource(total, fps, 60, 90), spec, VideoBudget(**wish))
            assert list(plan.frames) == [i for i in expected.tolist() if i < total], (fps, total)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "settings", [{}, {"size": {"shortest_edge": 64 * 4, "longest_edge": 6000}}, {"cap_pixels_per_frame": True}]
)
def test_sizes_are_those_of_transformers(family: str, settings: dict[str, Any]) -> None:
    theirs, spec = videos.processor(family, patch_size=4, **settings), declared(family, **settings)
    cap = settings.get("cap_pixels_per_frame", False)
    for count in (2, 4, 5, 9, 30):
        for height, width in ((60, 90), (7, 300), (480, 270), (33, 33), (4, 5)):
            resized = theirs.resize(
                torch.zeros(1, count, 3, height, width, dtype=torch.uint8),
                theirs.size,
                resample=3,
                factor=8,
                temporal_factor=2,
                cap_pixels_per_frame=cap,
            )
            assert frame_size(count, height, width, spec, VideoBudget()) == tuple(resized.shape[-2:])


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Pillow resizes bytes with weights of 22 bits, torch with 16: a level here and there."""
    folder = tiny.save(tiny.FAMILIES[family].make(), tmp_path)
    settings: dict[str, Any] = dict(tiny.PREPROCESSOR[family])
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps(settings | {"size": {"shortest_edge": 64 * 4, "longest_edge": 4000}})
    )
    opened = open_model(folder)
    assert opened.spec.video is not None, opened.spec.no_video
    assert opened.spec.vision is not None
    sized = {"size": {"shortest_edge": 64 * 4, "longest_edge": 4000}}
    own = {k: v for k, v in settings.items() if family != "qwen3_vl" or k not in ("min_pixels", "max_pixels")}
    theirs = videos.processor(family, **own | sized)
    pictures = np.random.default_rng(0).integers(0, 256, (11, 60, 90, 3), dtype=np.uint8)
    found = theirs(
        torch.from_numpy(pictures),
        video_metadata=[metadata(11, 4.0)],
        do_sample_frames=True,
        fps=2,
        return_metadata=True,
        return_tensors="pt",
    )
    mine = videos.item(opened.architecture, opened.spec, pictures, 4.0, fps=2)
    assert list(mine.grid) == found["video_grid_thw"][0].tolist()
    ours = videos.normalised_patches(mine, opened.spec.vision)
    expected = found["pixel_values_videos"]
    assert ours.shape == expected.shape
    std = torch.tensor(opened.spec.vision.std).repeat_interleave(2 * 4 * 4)
    off = ((ours - expected).abs() * std * 255).round()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.02


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, oracle.Ours]:
    theirs = tiny.FAMILIES[request.param].make()
    return theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model"))


def prompts(ours: oracle.Ours) -> list[oracle.Prompt]:
    def video(count: int, **wish: Any) -> Any:
        small = {"max_pixels": 1200, **wish}
        return videos.item(ours.architecture, ours.spec, videos.frames(count, 40, 60, count), 8.0, **small)

    listed = videos.item(ours.architecture, ours.spec, videos.frames(3, 24, 30), 0.5, sampled=True, max_pixels=1200)
    picture = oracle.picture(1, 40, 30)
    asked = [
        ([5, VIDEO, 7, 8, 9], [video(16)]),
        ([9, VIDEO, 8, IMAGE, 7, VIDEO, 6], [video(24, fps=3), picture, video(9, num_frames=4)]),
        ([IMAGE, 4, VIDEO], [picture, listed]),
    ]
    return [oracle.prompt(ours, ids, visuals) for ids, visuals in asked]


@torch.no_grad()
def test_positions_and_logits_equal_transformers(pair: tuple[PreTrainedModel, oracle.Ours]) -> None:
    """Also of the packed batch, in which stills and videos of other prompts lie beside each other."""
    theirs, ours = pair
    asked = prompts(ours)
    for one, logits in zip(asked, oracle.our_logits(ours, asked), strict=True):
        inputs = oracle.their_inputs(ours.spec, one)
        grids = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
        positions, delta = theirs.model.get_rope_index(**grids)
        assert positions[:, 0].tolist() == one.positions.tolist()
        assert delta.item() == one.delta
        expected = theirs(**inputs).logits[0]
        assert expected.std() > 0.3, "a flat distribution proves nothing"
        assert (logits - expected).abs().max() < 1e-4


def test_seconds_stand_between_the_first_and_the_last_frame_of_a_patch() -> None:
    source = VideoSource(30, 10.0, 60, 90)
    plan = plan_video(source, declared("qwen3_vl"), VideoBudget(num_frames=5))
    assert plan.frames == (0, 7, 14, 22, 29)
    assert timestamps(plan, 2) == pytest.approx([0.35, 1.8, 2.9])


@pytest.mark.parametrize(
    ("source", "budget", "said"),
    [
        (VideoSource(1, 8.0, 60, 90), {}, "a video of 1 frame: this model needs at least 2"),
        (VideoSource(9, 8.0, 60, 90), {"max_frames": 1, "min_frames": 1}, "of 9 frames (is|are) taken: this model"),
        (VideoSource(9, 8.0, 60, 90), {"max_frames": 4, "min_frames": 5}, "min_frames 5 is more than max_frames 4"),
        (VideoSource(9, 8.0, 60, 90), {"max_frames": 4, "num_frames": 6}, "num_frames 6 is not within"),
        (VideoSource(9, 8.0, 60, 90), {"num_frames": 10}, "num_frames 10 of a video that has 9"),
        (VideoSource(9, 8.0, 4, 900), {}, "side ratio"),
        (VideoSource(90, 8.0, 600, 900), {"max_tokens": 50}, "visual tokens; there is room for 50"),
    ],
)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_what_cannot_be_taken_is_said(family: str, source: VideoSource, budget: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        plan_video(source, declared(family), VideoBudget(**budget))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_as_few_pixels_as_there_are_make_the_smallest_frames(family: str) -> None:
    spec = declared(family)
    plan = plan_video(VideoSource(4, 2.0, 60, 90, sampled=True), spec, VideoBudget(total_pixels=3))
    assert (plan.height, plan.width) == (spec.factor, spec.factor)


@pytest.mark.parametrize("name", ["Qwen2-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen3-VL-2B-Instruct"])
def test_published_models_take_videos(name: str) -> None:
    files = published.model_files(name)
    architecture = Registry().architecture(files)
    spec = architecture.spec(files)
    assert spec.no_video == ""
    assert isinstance(architecture, TakesVideos)
    ten_seconds = VideoSource(300, 30.0, 720, 1280)
    plan = architecture.plan_video(ten_seconds, spec, VideoBudget(max_pixels=200_704))
    tokens = 10 * (plan.height // spec.video.factor) * (plan.width // spec.video.factor)
    assert plan.tokens == tokens
    assert tokens == (2520 if name != "Qwen3-VL-2B-Instruct" else 1800)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"video_processor_type": "SmolVLMVideoProcessor"}, "SmolVLMVideoProcessor"),
        ({"image_mean": [0.1, 0.2, 0.3]}, "image_mean"),
        ({"do_resize": False}, "do_resize"),
        ({"temporal_patch_size": 4}, "temporal_patch_size"),
        ({"size": {"shortest_edge": 1}}, "max_pixels"),
    ],
)
def test_a_processor_that_is_not_followed_keeps_nobody_from_pictures(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.qwen2_vl(), tmp_path)
    own = {k: v for k, v in tiny.PREPROCESSOR["qwen2_vl"].items() if "pixels" not in k}
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**own, **settings}))
    spec = open_model(folder).spec
    assert spec.image is not None
    assert spec.video is None
    assert said in spec.no_video
