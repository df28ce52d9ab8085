"""Pixtral's vision transformer: any resolution, rotary positions by row and column. Source: arXiv 2410.07073."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, layer_count, number, three
from opsin_plugins.families.encoders.clip import layers_taken
from opsin_plugins.families.image_processors import PIXTRAL, edge, resample_of, square
from opsin_plugins.families.images import longest_size, patches, pixel_limit, resize
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Concat,
    Config,
    EncoderSpec,
    Grid,
    Ignore,
    ImageBudget,
    ImageSpec,
    Rename,
    Rule,
    SpecError,
    TowerSpec,
)


class Pixtral:
    api_version = API_VERSION
    name = "pixtral"
    processor = PIXTRAL
    builder = "opsin_plugins.blocks.tower:Tower"
    claims = EncoderSpec(
        model_types=("pixtral",),
        attention=r"transformer\.layers\.{i}\.attention\.[qkvo]_proj",
        mlp=r"transformer\.layers\.{i}\.feed_forward\.(gate|up|down)_proj",
        selects_layer=True,
        not_composed="its rows end with tokens of their own, which a language model would have to learn first",
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """A family may add feature_layer to `config`."""
        settings = self.processor.resolve(preprocessor)
        width, heads = integer(config, "hidden_size", 1024), integer(config, "num_attention_heads", 16)
        if config.get("head_dim") not in (None, width // heads):
            raise SpecError(f"head_dim {config['head_dim']!r} of a tower of width {width} with {heads} heads")
        rope = config.get("rope_parameters")
        theta = config.get("rope_theta") or (rope.get("rope_theta") if isinstance(rope, Mapping) else None)
        return TowerSpec(
            layers=layers_taken(config, layer_count(config, "num_hidden_layers", 24)),
            width=width,
            heads=heads,
            mlp=integer(config, "intermediate_size", 4096),
            patch=integer(config, "patch_size", 16),
            norm_eps=1e-5,
            activation=activation(config, "hidden_act", "gelu"),
            position="staggered_rope",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            theta=number({"rope_theta": theta or 1e4}, "rope_theta"),
            pre_norm=True,
            norm="rms",
            gated_mlp=True,
            attention_bias=False,
            mlp_bias=False,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        """A family that joins neighbours adds spatial_merge_size to `config`."""
        settings = self.processor.resolve(preprocessor)
        longest = edge(settings, "size", "longest_edge", int_is_square=True) or square(settings, "size")
        if longest is None:
            raise SpecError(f"image processor size {settings['size']!r} bounds no longest edge")
        if settings["patch_size"] is not None and square(settings, "patch_size") != spec.patch:
            raise SpecError(
                f"image processor patch_size {settings['patch_size']!r}, but the tower's patches have {spec.patch} "
                "pixels a side"
            )
        merge = integer(config, "spatial_merge_size", 1)
        return ImageSpec("longest", resample_of(settings), spec.patch, merge=merge, longest_edge=longest)

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        factor, longest = image_spec.patch * image_spec.merge, image_spec.longest_edge
        high, wide, _ = image.shape
        height, width = longest_size(high, wide, longest, factor)
        limit = pixel_limit(budget, factor**2, height * width)
        while height * width > max(limit, factor**2) and longest > factor:
            # Rounding up to whole patches makes the area jump: go down until it fits.
            longest = min(longest - 1, math.floor(max(height, width) * math.sqrt(limit / (height * width))))
            height, width = longest_size(high, wide, max(longest, factor), factor)
        return patches(resize(image, height, width, image_spec.resample), image_spec.patch, image_spec.merge)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        source, mine = f"{prefix}transformer.layers.{{i}}.", "vision.layers.{i}."
        return [
            Rename(f"{prefix}patch_conv.weight", "vision.patch.weight"),
            Concat(tuple(f"{source}attention.{n}_proj.weight" for n in "qkv"), f"{mine}attention.qkv.weight"),
            Concat(tuple(f"{source}feed_forward.{n}_proj.weight" for n in ("gate", "up")), f"{mine}mlp.gate_up.weight"),
            *renames(
                {
                    f"{prefix}ln_pre": "vision.pre_norm",
                    f"{source}attention.o_proj": f"{mine}attention.out",
                    f"{source}feed_forward.down_proj": f"{mine}mlp.down",
                    f"{source}attention_norm": f"{mine}attention_norm",
                    f"{source}ffn_norm": f"{mine}mlp_norm",
                },
                ["weight"],
            ),
            Ignore(f"{source}{{rest}}", "a layer past the one whose features are taken"),
        ]
