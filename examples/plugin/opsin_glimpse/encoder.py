"""The torch-free half of the encoder: its configuration, its pictures, its weights' names."""

from collections.abc import Mapping, Sequence

from opsin_plugins.configs import integer, three
from opsin_plugins.families import renames
from opsin_plugins.images import patches, resize
from opsin_plugins.spec import API_VERSION, U8, Grid, ImageBudget, ImageSpec, Rule, TowerSpec

HALF = (0.5, 0.5, 0.5)


class Mixer:
    api_version = API_VERSION
    name = "mixer"
    builder = "opsin_glimpse.mixer:MixerTower"

    def spec(self, config: Mapping[str, object], preprocessor: Mapping[str, object]) -> TowerSpec:
        patch = integer(config, "patch_size")
        return TowerSpec(
            layers=integer(config, "num_hidden_layers"),
            width=integer(config, "hidden_size"),
            heads=1,  # it has none; the field is there for transformers
            mlp=integer(config, "intermediate_size"),
            patch=patch,
            norm_eps=1e-6,
            activation="gelu",
            position="learned",
            positions=(integer(config, "image_size") // patch) ** 2,
            mean=three(preprocessor, "image_mean", HALF),
            std=three(preprocessor, "image_std", HALF),
            patch_bias=True,
        )

    def image(self, spec: TowerSpec, config: Mapping[str, object], preprocessor: Mapping[str, object]) -> ImageSpec:
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
