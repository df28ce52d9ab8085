"""CLIP's vision transformer: learned positions, a class token, a norm before the blocks. Source: arXiv 2103.00020."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import MOST_LAYERS, activation, flag, integer, layer_count, number, three
from opsin_plugins.families.image_processors import CLIP, edge, edges, resample_of, square
from opsin_plugins.families.images import patches, resize, resize_and_crop
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

# What CLIP and SigLIP name alike.
POSITION_IDS = "embeddings.position_ids"
LAYER_ATTENTION = r"encoder\.layers\.{i}\.self_attn\.([qkv]_proj|out_proj)"
LAYER_MLP = r"encoder\.layers\.{i}\.mlp\.fc[12]"


class Clip:
    api_version = API_VERSION
    name = "clip"
    processor = CLIP
    builder = "opsin_plugins.blocks.tower:Tower"
    claims = EncoderSpec(
        model_types=("clip_vision_model",),
        checkpoint_types=("clip",),
        prefix="vision_model.",
        left_out=("visual_projection.{rest}", POSITION_IDS),
        image_processor=CLIP.complete,
        attention=LAYER_ATTENTION,
        mlp=LAYER_MLP,
        selects_layer=True,
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """A family may add feature_layer (-2: the last block is not run) and keep_class_token to `config`."""
        settings = self.processor.resolve(preprocessor)
        pixels, patch = integer(config, "image_size", 224), integer(config, "patch_size", 32)
        if pixels % patch:
            raise SpecError(f"image_size {pixels} is no grid of patches of {patch}")
        return TowerSpec(
            layers=layers_taken(config, layer_count(config, "num_hidden_layers", 12)),
            width=integer(config, "hidden_size", 768),
            heads=integer(config, "num_attention_heads", 12),
            mlp=integer(config, "intermediate_size", 3072),
            patch=patch,
            norm_eps=number(config, "layer_norm_eps", 1e-5),
            activation=activation(config, "hidden_act", "quick_gelu"),
            position="learned",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            positions=(pixels // patch) ** 2 + 1,
            class_token=True,
            keep_class_token=config.get("keep_class_token") is True,
            pre_norm=True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        """A size with both its sides ignores the ratio, one with its shortest edge keeps it."""
        settings, side = self.processor.resolve(preprocessor), integer(config, "image_size", 224)
        resample, crops = resample_of(settings), flag(settings, "do_center_crop")
        cropped = square(settings, "crop_size") if crops else side
        if square(settings, "size", int_is_square=False) == cropped == side:
            return ImageSpec("stretch", resample, spec.patch, size=(side, side))
        shortest = edge(settings, "size", "shortest_edge", int_is_square=False)
        if (
            not crops
            or cropped != side
            or shortest is None
            or "longest_edge" in (edges(settings, "size", int_is_square=False))
        ):
            raise SpecError(
                f"a tower of {side} pixels a side needs pictures of that size, but size {settings['size']!r}, "
                f"crop_size {settings['crop_size']!r} and do_center_crop {crops} give others"
            )
        return ImageSpec("crop", resample, spec.patch, size=(side, side), shortest_edge=shortest)

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """Every picture has one size, so a budget changes nothing."""
        if image_spec.resize == "stretch":
            return patches(resize(image, *image_spec.size, image_spec.resample), image_spec.patch)
        kept = resize_and_crop(image, image_spec.shortest_edge, *image_spec.size, image_spec.resample)
        return patches(kept, image_spec.patch)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        return [
            Rename(f"{prefix}embeddings.class_embedding", "vision.class_token"),
            Ignore(f"{prefix}post_layernorm.{{rest}}", "the features are taken before it"),
            *renames({f"{prefix}pre_layrnorm": "vision.pre_norm"}),  # (the published spelling)
            *clip_rules(prefix),
        ]


def clip_rules(prefix: str) -> list[Rule]:
    """What CLIP and SigLIP name alike: patches, positions and layers."""
    source = f"{prefix}encoder.layers.{{i}}."
    return [
        Rename(f"{prefix}embeddings.patch_embedding.weight", "vision.patch.weight"),
        Rename(f"{prefix}embeddings.position_embedding.weight", "vision.positions"),
        Ignore(f"{prefix}{POSITION_IDS}", "a buffer that old checkpoints saved"),
        *layer_rules(source, "vision.layers.{i}."),
        Ignore(f"{source}{{rest}}", "a layer past the one whose features are taken"),
    ]


def layer_rules(source: str, mine: str) -> list[Rule]:
    """Of a layer, as CLIP and SigLIP name it in their towers and in their text halves."""
    return [
        *(
            Concat(tuple(f"{source}self_attn.{n}_proj.{kind}" for n in "qkv"), f"{mine}attention.qkv.{kind}")
            for kind in ("weight", "bias")
        ),
        *renames(
            {
                f"{source}self_attn.out_proj": f"{mine}attention.out",
                f"{source}mlp.fc1": f"{mine}mlp.up",
                f"{source}mlp.fc2": f"{mine}mlp.down",
                f"{source}layer_norm1": f"{mine}attention_norm",
                f"{source}layer_norm2": f"{mine}mlp_norm",
            }
        ),
    ]


def layers_taken(config: Config, depth: int) -> int:
    """How many layers run when the features are those of layer `feature_layer` (-1: the last; 0 would be the
    patches)."""
    feature = integer(config, "feature_layer", -1, least=-MOST_LAYERS)
    layers = depth + 1 + feature if feature < 0 else feature
    if not 0 < layers <= depth:
        raise SpecError(f"feature layer {feature} of a tower with {depth} layers")
    return layers
