"""CLIP's vision transformer: learned positions, a class token, a norm before the blocks. Source: arXiv 2103.00020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.configs import MOST_LAYERS, Config, activation, integer, layer_count, number, standard_pixels, three
from opsin_plugins.families import renames
from opsin_plugins.images import patches, resize_and_crop
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Concat,
    Grid,
    Ignore,
    ImageBudget,
    ImageSpec,
    Rename,
    Rule,
    SpecError,
    TowerSpec,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    api_version = API_VERSION
    name = "clip"
    builder = "opsin_plugins.blocks.tower:Tower"

    def spec(self, config: Config, preprocessor: Config) -> TowerSpec:
        """A family may add feature_layer (-2: the last block is not run) and keep_class_token to `config`."""
        side = integer(config, "image_size", 224) // integer(config, "patch_size", 32)
        return TowerSpec(
            layers=layers_taken(config, layer_count(config, "num_hidden_layers", 12)),
            width=integer(config, "hidden_size", 768),
            heads=integer(config, "num_attention_heads", 12),
            mlp=integer(config, "intermediate_size", 3072),
            patch=integer(config, "patch_size", 32),
            norm_eps=number(config, "layer_norm_eps", 1e-5),
            activation=activation(config, "hidden_act", "quick_gelu"),
            position="learned",
            mean=three(preprocessor, "image_mean", MEAN),
            std=three(preprocessor, "image_std", STD),
            positions=side * side + 1,
            class_token=True,
            keep_class_token=config.get("keep_class_token") is True,
            pre_norm=True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config) -> ImageSpec:
        standard_pixels(preprocessor, ("do_resize", "do_center_crop", "do_rescale", "do_normalize"))
        side = integer(config, "image_size", 224)
        size, crop = preprocessor.get("size", side), preprocessor.get("crop_size", side)
        edge = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
        box = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else (crop, crop)
        if box != (side, side) or not isinstance(edge, int) or edge < 1:
            raise SpecError(
                f"a CLIP tower of {side} pixels a side needs size and crop_size to match, got {size!r}, {crop!r}"
            )
        return ImageSpec(
            "crop", integer(preprocessor, "resample", 3, least=0), spec.patch, size=(side, side), shortest_edge=edge
        )

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """Every picture has one size, so a budget changes nothing."""
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
    source, mine = f"{prefix}encoder.layers.{{i}}.", "vision.layers.{i}."
    return [
        Rename(f"{prefix}embeddings.patch_embedding.weight", "vision.patch.weight"),
        Rename(f"{prefix}embeddings.position_embedding.weight", "vision.positions"),
        Ignore(f"{prefix}embeddings.position_ids", "a buffer that old checkpoints saved"),
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
        Ignore(f"{source}{{rest}}", "a layer past the one whose features are taken"),
    ]


def layers_taken(config: Config, depth: int) -> int:
    """How many layers run when the features are those of layer `feature_layer` (-1: the last; 0 would be the
    patches)."""
    feature = integer(config, "feature_layer", -1, least=-MOST_LAYERS)
    layers = depth + 1 + feature if feature < 0 else feature
    if not 0 < layers <= depth:
        raise SpecError(f"feature layer {feature} of a tower with {depth} layers")
    return layers
