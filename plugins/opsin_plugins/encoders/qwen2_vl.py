"""Qwen2-VL's vision transformer: any resolution, axial rotary positions, 2 × 2 order. Source: arXiv 2409.12191."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.configs import Config, activation, integer, layer_count, number, standard_pixels, three
from opsin_plugins.families import renames
from opsin_plugins.images import patches, pixel_limit, resize, smart_size
from opsin_plugins.spec import API_VERSION, U8, Grid, ImageBudget, ImageSpec, Rename, Rule, TowerSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Qwen2VLEncoder:
    api_version = API_VERSION
    name = "qwen2_vl"
    builder = "opsin_plugins.blocks.tower:Tower"
    mlp = ("mlp.fc1", "mlp.fc2")  # what the MLP's two linears are called

    def spec(self, config: Config, preprocessor: Config) -> TowerSpec:
        width = integer(config, "embed_dim", 1280)
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
            mean=three(preprocessor, "image_mean", MEAN),
            std=three(preprocessor, "image_std", STD),
            temporal=integer(config, "temporal_patch_size", 2),
            theta=number(rope if isinstance(rope, Mapping) else {}, "rope_theta", 1e4),
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config) -> ImageSpec:
        """Both published forms of the limits: min_pixels and max_pixels, or size with its edges."""
        standard_pixels(preprocessor, ("do_resize", "do_rescale", "do_normalize"))
        size = preprocessor.get("size")
        edges = size if isinstance(size, Mapping) else {}
        return ImageSpec(
            "smart",
            integer(preprocessor, "resample", 3, least=0),
            spec.patch,
            merge=integer(config, "spatial_merge_size", 2),
            min_pixels=integer(preprocessor, "min_pixels", edges.get("shortest_edge", 56 * 56), least=0),
            max_pixels=integer(preprocessor, "max_pixels", edges.get("longest_edge", 28 * 28 * 1280)),
        )

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        factor = image_spec.patch * image_spec.merge
        limit = max(image_spec.min_pixels, pixel_limit(budget, factor**2, image_spec.max_pixels))
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
