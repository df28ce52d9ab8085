"""Qwen-VL's vision transformer: OpenCLIP's bigG with positions stretched to 448 pixels. Source: arXiv 2308.12966."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import integer, layer_count, number
from opsin_plugins.families.image_processors import CLIP_MEAN, CLIP_STD
from opsin_plugins.families.images import patches, resize
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Config,
    EncoderSpec,
    Grid,
    ImageBudget,
    ImageSpec,
    Rename,
    Reorder,
    Rule,
    TowerSpec,
)

TABLE = 256  # rows of the position table: bigG's own 16 x 16
BICUBIC = 3


class QwenVLEncoder:
    api_version = API_VERSION
    name = "qwen_vl"
    builder = "opsin_plugins.blocks.tower:Tower"
    claims = EncoderSpec(
        attention=r"transformer\.resblocks\.{i}\.attn\.(in_proj|out_proj)",
        mlp=r"transformer\.resblocks\.{i}\.mlp\.c_(fc|proj)",
        not_composed="no configuration names it by a model_type",
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """How pictures are prepared stands in the repository's code, not in a file: `preprocessor` is not read."""
        width = integer(config, "width", 1664)
        return TowerSpec(
            layers=layer_count(config, "layers", 48),
            width=width,
            heads=integer(config, "heads", 16),
            mlp=int(width * number(config, "mlp_ratio", 4.9231)),
            patch=integer(config, "patch_size", 14),
            norm_eps=1e-6,
            activation="gelu",
            position="resized",
            mean=CLIP_MEAN,
            std=CLIP_STD,
            positions=integer(config, "positions", TABLE),
            pre_norm=True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        side = integer(config, "image_size", 448) // spec.patch * spec.patch
        return ImageSpec("stretch", BICUBIC, spec.patch, size=(side, side))

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """Every picture has one size, so a budget changes nothing."""
        return patches(resize(image, *image_spec.size, image_spec.resample), image_spec.patch)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        source, mine = f"{prefix}transformer.resblocks.{{i}}.", "vision.layers.{i}."
        # Rows stand head by head, each with its query, key and value.
        fused = Reorder((spec.heads, 3, spec.width // spec.heads), (1, 0, 2))
        return [
            Rename(f"{prefix}conv1.weight", "vision.patch.weight"),
            Rename(f"{prefix}positional_embedding", "vision.positions"),
            *(
                Rename(f"{source}attn.in_proj.{kind}", f"{mine}attention.qkv.{kind}", fused)
                for kind in ("weight", "bias")
            ),
            *renames(
                {
                    f"{prefix}ln_pre": "vision.pre_norm",
                    f"{source}attn.out_proj": f"{mine}attention.out",
                    f"{source}mlp.c_fc": f"{mine}mlp.up",
                    f"{source}mlp.c_proj": f"{mine}mlp.down",
                    f"{source}ln_1": f"{mine}attention_norm",
                    f"{source}ln_2": f"{mine}mlp_norm",
                }
            ),
        ]
