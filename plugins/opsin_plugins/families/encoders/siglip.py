"""SigLIP's vision transformer: learned positions, no class token. Source: arXiv 2303.15343."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, layer_count, number, three
from opsin_plugins.families.encoders.clip import LAYER_ATTENTION, LAYER_MLP, POSITION_IDS, clip_rules, layers_taken
from opsin_plugins.families.image_processors import SIGLIP, resample_of, square
from opsin_plugins.families.images import patches, resize
from opsin_plugins.spec import (
    API_VERSION,
    U8,
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


class Siglip:
    api_version = API_VERSION
    name = "siglip"
    processor = SIGLIP
    builder = "opsin_plugins.blocks.tower:Tower"
    claims = EncoderSpec(
        model_types=("siglip_vision_model",),
        checkpoint_types=("siglip",),
        prefix="vision_model.",
        left_out=("head.{rest}", POSITION_IDS),
        without_left_out={"vision_use_head": False},
        image_processor=SIGLIP.complete,
        attention=LAYER_ATTENTION,
        mlp=LAYER_MLP,
        selects_layer=True,
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """A family may add feature_layer, post_norm and bucketed (positions by fraction: Idefics3) to `config`."""
        settings, patch = self.processor.resolve(preprocessor), integer(config, "patch_size", 16)
        return TowerSpec(
            layers=layers_taken(config, layer_count(config, "num_hidden_layers", 12)),
            width=integer(config, "hidden_size", 768),
            heads=integer(config, "num_attention_heads", 12),
            mlp=integer(config, "intermediate_size", 3072),
            patch=patch,
            norm_eps=number(config, "layer_norm_eps", 1e-6),
            activation=activation(config, "hidden_act", "gelu_pytorch_tanh"),
            position="bucketed" if config.get("bucketed") is True else "learned",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            positions=(integer(config, "image_size", 224) // patch) ** 2,
            post_norm=config.get("post_norm") is True,
            patch_bias=True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        settings, side = self.processor.resolve(preprocessor), integer(config, "image_size", 224)
        if square(settings, "size", int_is_square=False) != side:
            raise SpecError(f"a SigLIP tower of {side} pixels a side needs a size to match, got {settings['size']!r}")
        return ImageSpec("stretch", resample_of(settings), spec.patch, size=(side, side))

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """Every picture has one size, so a budget changes nothing."""
        return patches(resize(image, *image_spec.size, image_spec.resample), image_spec.patch)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        after = "post_layernorm"
        return [
            Rename(f"{prefix}embeddings.patch_embedding.bias", "vision.patch.bias"),
            *(renames({f"{prefix}{after}": "vision.post_norm"}) if spec.post_norm else ()),
            Ignore(f"{prefix}{after}.{{rest}}", "the features are taken before it"),
            Ignore(f"{prefix}head.{{rest}}", "pools a whole picture into one vector"),
            *clip_rules(prefix),
        ]
