"""Llama 3.2 Vision's tower: up to four tiles of a picture seen together. Source: arXiv 2407.21783, §7."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, integers, layer_count, number, three
from opsin_plugins.families.image_processors import MLLAMA, resample_of, square
from opsin_plugins.families.images import pad_to, pixel_limit, resize, tile_patches, tiles
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Concat,
    Config,
    EncoderSpec,
    Grid,
    ImageBudget,
    ImageSpec,
    Rename,
    Rule,
    SpecError,
    TiledTowerSpec,
    TowerSpec,
)

TAPS = (3, 7, 15, 23, 30)


class MllamaEncoder:
    api_version = API_VERSION
    name = "mllama"
    processor = MLLAMA
    builder = "opsin_plugins.blocks.tiled_tower:TiledTower"
    claims = EncoderSpec(
        model_types=("mllama_vision_model",),
        attention=r"(global_)?transformer\.layers\.{i}\.self_attn\.[qkvo]_proj",
        mlp=r"(global_)?transformer\.layers\.{i}\.mlp\.fc[12]",
        not_composed="no LLaVA directory has a form for tiles that are seen together",
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TiledTowerSpec:
        """A family may add keep_padding to `config`."""
        settings = self.processor.resolve(preprocessor)
        patch, count = integer(config, "patch_size", 14), integer(config, "max_num_tiles", 4, most=64)
        return TiledTowerSpec(
            layers=layer_count(config, "num_hidden_layers", 32),
            width=integer(config, "hidden_size", 1280),
            heads=integer(config, "attention_heads", 16),
            mlp=integer(config, "intermediate_size", 5120),
            patch=patch,
            norm_eps=number(config, "norm_eps", 1e-5),
            activation=activation(config, "hidden_act", "gelu"),
            position="learned",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            positions=(integer(config, "image_size", 448) // patch) ** 2 + 1,
            attention_bias=False,
            taps=integers(config, "intermediate_layers_indices", TAPS, null=TAPS),
            max_tiles=count,
            global_layers=layer_count(config, "num_global_layers", 8, least=0),
            arrangements=_arrangements(config, count),
            keep_padding=config.get("keep_padding") is True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        assert isinstance(spec, TiledTowerSpec)
        settings, side = self.processor.resolve(preprocessor), integer(config, "image_size", 448)
        if square(settings, "size") != side:
            raise SpecError(f"a tower of {side} pixels a tile needs a size to match, got {settings['size']!r}")
        count = integer(settings, "max_image_tiles")
        if not 0 < count <= spec.max_tiles:
            raise SpecError(f"max_image_tiles {count} of a tower that takes 1 to {spec.max_tiles}")
        canvases = tuple((h * side, w * side) for h, w in spec.arrangements if h * w <= count)
        return ImageSpec("tiles", resample_of(settings), spec.patch, size=(side, side), pinpoints=canvases)

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        return self.tiled(image, image_spec, budget)[:2]

    def tiled(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid, tuple[int, int]]:
        """Also how the tiles lie, (rows, columns). Black is padded before values are normalised."""
        side, patch, (high, wide, _) = image_spec.size[0], image_spec.patch, image.shape
        per_token = side * side // ((side // patch) ** 2 + 1)
        limit = pixel_limit(budget, per_token, max(h * w for h, w in image_spec.pinpoints))
        height, width = best_canvas(high, wide, image_spec.pinpoints, max(limit, side * side))
        fitted = resize(image, *fitted_size(high, wide, height, width, side), image_spec.resample)
        parts = tiles(pad_to(fitted, height, width), side, side)
        return *tile_patches(parts, patch), (height // side, width // side)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        rules: list[Rule] = [
            Rename(f"{prefix}patch_embedding.weight", "vision.patch.weight"),
            Rename(f"{prefix}class_embedding", "vision.class_token"),
            Rename(f"{prefix}gated_positional_embedding.embedding", "vision.positions"),
            Rename(f"{prefix}gated_positional_embedding.gate", "vision.tile_positions.gate"),
            Rename(f"{prefix}gated_positional_embedding.tile_embedding.weight", "vision.tile_positions.weight"),
            *renames({f"{prefix}layernorm_pre": "vision.pre_norm", f"{prefix}layernorm_post": "vision.post_norm"}),
        ]
        for theirs, ours in (("pre_tile", "before_tiles"), ("post_tile", "after_tiles")):
            rules += [
                Rename(f"{prefix}{theirs}_positional_embedding.gate", f"vision.{ours}.gate"),
                Rename(f"{prefix}{theirs}_positional_embedding.embedding.weight", f"vision.{ours}.weight"),
            ]
        for theirs, ours in (("transformer", "layers"), ("global_transformer", "global_layers")):
            source, mine = f"{prefix}{theirs}.layers.{{i}}.", f"vision.{ours}.{{i}}."
            rules += [
                Concat(tuple(f"{source}self_attn.{n}_proj.weight" for n in "qkv"), f"{mine}attention.qkv.weight"),
                Rename(f"{source}self_attn.o_proj.weight", f"{mine}attention.out.weight"),
                Rename(f"{source}gate_attn", f"{mine}attention_gate"),
                Rename(f"{source}gate_ffn", f"{mine}mlp_gate"),
                *renames(
                    {
                        f"{source}mlp.fc1": f"{mine}mlp.up",
                        f"{source}mlp.fc2": f"{mine}mlp.down",
                        f"{source}input_layernorm": f"{mine}attention_norm",
                        f"{source}post_attention_layernorm": f"{mine}mlp_norm",
                    }
                ),
            ]
        return rules


def _arrangements(config: Config, count: int) -> tuple[tuple[int, int], ...]:
    """Of up to `count` tiles, in the published order. Raises SpecError when the configuration's own list differs."""
    found = tuple((a, b) for a in range(1, count + 1) for b in range(1, count + 1) if a * b <= count)
    side = integer(config, "image_size", 448)
    listed = config.get("supported_aspect_ratios")
    if listed is not None and [list(a) for a in found] != listed:
        raise SpecError(f"supported_aspect_ratios {listed!r} are not those of {count} tiles of {side} pixels")
    return found


def best_canvas(height: int, width: int, canvases: Sequence[tuple[int, int]], limit: int) -> tuple[int, int]:
    """The canvas on which the picture is enlarged least; else shrunk least; of several, the smallest. None larger than
    `limit` pixels is taken."""
    allowed = [c for c in canvases if c[0] * c[1] <= limit]
    scales = {c: min(c[0] / height, c[1] / width) for c in allowed}
    larger = [s for s in scales.values() if s >= 1]
    scale = min(larger) if larger else max(scales.values())
    return min((c for c in allowed if scales[c] == scale), key=lambda c: c[0] * c[1])


def fitted_size(height: int, width: int, canvas_height: int, canvas_width: int, tile: int) -> tuple[int, int]:
    """(height, width) of the picture on its canvas: the ratio is kept, nothing is enlarged past one tile a side."""
    high, wide = min(max(height, tile), canvas_height), min(max(width, tile), canvas_width)
    if wide / width < high / height:
        return min(math.floor(height * (wide / width)) or 1, high), wide
    return high, min(math.floor(width * (high / height)) or 1, wide)
