"""The torch-free half of the encoder: its configuration, its pictures, its weights' names."""

from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import integer, layer_count, three
from opsin_plugins.families.image_processors import HALF, ImageProcessor
from opsin_plugins.families.images import patches, resize
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    Config,
    EncoderSpec,
    Grid,
    ImageBudget,
    ImageSpec,
    Linears,
    Rule,
    TowerSpec,
    mlp_linears,
)

PROCESSOR = ImageProcessor(("GlimpseImageProcessor",), {"image_mean": HALF, "image_std": HALF})


class Mixer:
    api_version = API_VERSION
    name = "mixer"
    builder = "opsin_glimpse.mixer:MixerTower"
    claims = EncoderSpec(model_types=("mixer_vision_model",), mlp=r"layers\.{i}\.channel_mlp\.(up|down)")

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        patch, settings = integer(config, "patch_size"), PROCESSOR.resolve(preprocessor)
        return TowerSpec(
            layers=layer_count(config, "num_hidden_layers"),
            width=integer(config, "hidden_size"),
            heads=1,  # it has none; the field is there for transformers
            mlp=integer(config, "intermediate_size"),
            patch=patch,
            norm_eps=1e-6,
            activation="gelu",
            position="learned",
            positions=(integer(config, "image_size") // patch) ** 2,
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            patch_bias=True,
        )

    def linears(self, spec: TowerSpec) -> Linears:
        """Those that adapters may change: a row of a token MLP is no patch, and so has no adapter."""
        mlp = mlp_linears(spec.width, spec.mlp, spec.width, gated=False)
        return {f"layers.{i}.channel_mlp.{name}": shape for i in range(spec.layers) for name, shape in mlp.items()}

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        side = integer(config, "image_size")
        return ImageSpec("stretch", resample=3, patch=spec.patch, merge=2, size=(side, side))

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """One size for every picture: a budget changes nothing."""
        return patches(resize(image, *image_spec.size, image_spec.resample), image_spec.patch, image_spec.merge)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        layer, mine = f"{prefix}layers.{{i}}.", "vision.layers.{i}."
        names = ("token_norm", "token_mlp.up", "token_mlp.down", "channel_norm", "channel_mlp.up", "channel_mlp.down")
        return [
            *renames({f"{prefix}patches": "vision.patch"}),
            *renames({layer + name: mine + name for name in names}),
        ]
