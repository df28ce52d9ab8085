"""Qwen2-VL's vision transformer: any resolution, axial rotary positions, 2 × 2 order. Source: arXiv 2409.12191."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, layer_count, number, three
from opsin_plugins.families.image_processors import (
    QWEN2_VL,
    QWEN2_VL_VIDEO,
    ImageProcessor,
    edge,
    resample_of,
)
from opsin_plugins.families.images import patches, pixel_limit, resize, smart_size
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Config,
    EncoderSpec,
    Grid,
    ImageBudget,
    ImageSpec,
    Rename,
    Rule,
    SpecError,
    TowerSpec,
    VideoSpec,
)

LAYER_ATTENTION = r"blocks\.{i}\.attn\.(qkv|proj)"
JOINS = "no LLaVA directory has a form for a tower that joins neighbours"


class Qwen2VLEncoder:
    api_version = API_VERSION
    name = "qwen2_vl"
    processor = QWEN2_VL
    video_processor: ClassVar[ImageProcessor] = QWEN2_VL_VIDEO
    video_sampling: ClassVar[Literal["steps", "ends"]] = "steps"
    video_budget: ClassVar[Literal["frame", "video"]] = "frame"
    builder = "opsin_plugins.blocks.tower:Tower"
    mlp = ("mlp.fc1", "mlp.fc2")  # what the MLP's two linears are called
    claims = EncoderSpec(
        model_types=("qwen2_vl", "qwen2_vl_vision"),
        attention=LAYER_ATTENTION,
        mlp=r"blocks\.{i}\.mlp\.fc[12]",
        not_composed=JOINS,
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        settings, width = self.processor.resolve(preprocessor), integer(config, "embed_dim", 1280)
        rope = config.get("rope_parameters")
        return TowerSpec(
            layers=layer_count(config, "depth", 32),
            width=width,
            heads=integer(config, "num_heads", 16),
            mlp=int(width * number(config, "mlp_ratio", 4)),
            patch=integer(config, "patch_size", 14),
            norm_eps=1e-6,
            activation=activation(config, "hidden_act", "quick_gelu"),
            position="axial_rope",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            temporal=integer(config, "temporal_patch_size", 2),
            theta=number(rope if isinstance(rope, Mapping) else {}, "rope_theta", 1e4),
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        """Both published forms of the limits: min_pixels and max_pixels, which count, or size with its edges (both are
        pixels in fact)."""
        settings, merge = self.processor.resolve(preprocessor), integer(config, "spatial_merge_size", 2)
        check_patches(self.processor, settings, spec, merge)
        limits = pixel_limits(self.processor, settings, named=True)
        return ImageSpec(
            "smart",
            resample_of(settings),
            spec.patch,
            merge=merge,
            min_pixels=integer(limits, "min_pixels"),
            max_pixels=integer(limits, "max_pixels"),
        )

    def video(self, spec: TowerSpec, config: Config, settings: Config | None) -> VideoSpec:
        """settings: the video processor's, or where there are none the image processor's, as transformers reads them.
        Frames are always sampled (`do_sample_frames` or not), and normalised as pictures are."""
        settings, merge = self.video_processor.resolve(settings), integer(config, "spatial_merge_size", 2)
        check_patches(self.video_processor, settings, spec, merge)
        for key, own in (("image_mean", spec.mean), ("image_std", spec.std)):
            if three(settings, key) != own:
                raise SpecError(f"video processor {key} {settings[key]!r}, but the image processor says {own}")
        limits = pixel_limits(self.video_processor, settings, named=self.video_budget == "frame")
        return VideoSpec(
            self.video_sampling,
            self.video_budget,
            resample_of(settings),
            spec.patch,
            merge,
            spec.temporal,
            min_pixels=integer(limits, "min_pixels"),
            max_pixels=integer(limits, "max_pixels"),
            fps=None if settings["fps"] is None else number(settings, "fps", 0.0),
            num_frames=None if settings["num_frames"] is None else integer(settings, "num_frames"),
            min_frames=integer(settings, "min_frames"),
            max_frames=integer(settings, "max_frames"),
            frame_tokens=integer(settings, "max_video_tokens") if settings["cap_pixels_per_frame"] else 0,
            ticks_per_second=self.ticks_per_second(config),
        )

    def ticks_per_second(self, config: Config) -> float:
        """As of VideoSpec."""
        return 0.0

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        factor = image_spec.patch * image_spec.merge
        least = min(image_spec.min_pixels, image_spec.max_pixels)
        limit = max(least, pixel_limit(budget, factor**2, image_spec.max_pixels))
        height, width = smart_size(image.shape[0], image.shape[1], factor, image_spec.min_pixels, limit)
        return patches(resize(image, height, width, image_spec.resample), image_spec.patch, image_spec.merge)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        source, mine = f"{prefix}blocks.{{i}}.", "vision.layers.{i}."
        up, down = self.mlp
        names = {
            f"{source}attn.qkv": f"{mine}attention.qkv",
            f"{source}attn.proj": f"{mine}attention.out",
            f"{source}{up}": f"{mine}mlp.up",
            f"{source}{down}": f"{mine}mlp.down",
            f"{source}norm1": f"{mine}attention_norm",
            f"{source}norm2": f"{mine}mlp_norm",
        }
        return [Rename(f"{prefix}patch_embed.proj.weight", "vision.patch.weight"), *renames(names)]


def check_patches(processor: ImageProcessor, settings: Config, spec: TowerSpec, merge: int) -> None:
    for key, own in (("patch_size", spec.patch), ("merge_size", merge), ("temporal_patch_size", spec.temporal)):
        if settings[key] != own:
            kind, given = processor.kind, settings[key]
            raise SpecError(f"{kind} processor {key} {given!r}, but the vision configuration says {own}")


def pixel_limits(processor: ImageProcessor, settings: Config, named: bool) -> dict[str, object]:
    """min_pixels and max_pixels. named: whether settings of these names count, where there are any."""
    sized = {"size": processor.defaults["size"]} if settings["size"] is None else settings
    return {
        name: edge(sized, "size", other, int_is_square=False) if settings[name] is None or not named else settings[name]
        for name, other in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    }
