"""SigLIP 2's vision transformer for pictures of any shape (NaFlex): as many patches as a limit allows, and positions
stretched to their grid. Source: arXiv 2502.14786, §2.4.2."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, layer_count, number, three
from opsin_plugins.families.encoders.clip import clip_rules
from opsin_plugins.families.image_processors import SIGLIP2, resample_of
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
    SpecError,
    TowerSpec,
)

# Between these scales of a picture one is looked for that fills the limit, to this exactness: as published.
SCALES, EXACTNESS = (1e-6, 100.0), 1e-5
MOST_PATCHES = 2**16


class Siglip2:
    """It claims no vision configuration: no family but its own is known to use it."""

    api_version = API_VERSION
    name = "siglip2"
    processor = SIGLIP2
    builder = "opsin_plugins.blocks.tower:Tower"
    claims = EncoderSpec(image_processor=SIGLIP2.complete)

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        settings, patch = self.processor.resolve(preprocessor), integer(config, "patch_size", 16)
        table = integer(config, "num_patches", 256, most=MOST_PATCHES)
        if math.isqrt(table) ** 2 != table:
            raise SpecError(f"num_patches {table} is no square: the table of positions is one")
        return TowerSpec(
            layers=layer_count(config, "num_hidden_layers", 12),
            width=integer(config, "hidden_size", 768),
            heads=integer(config, "num_attention_heads", 12),
            mlp=integer(config, "intermediate_size", 3072),
            patch=patch,
            norm_eps=number(config, "layer_norm_eps", 1e-6),
            activation=activation(config, "hidden_act", "gelu_pytorch_tanh"),
            position="smoothed",
            mean=three(settings, "image_mean"),
            std=three(settings, "image_std"),
            positions=table,
            patch_bias=True,
            flat_patches=True,
        )

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec:
        settings = self.processor.resolve(preprocessor)
        if (patch := integer(settings, "patch_size")) != spec.patch:
            raise SpecError(f"pictures are cut into patches of {patch}, and the tower's are of {spec.patch}")
        most = integer(settings, "max_num_patches", most=MOST_PATCHES)
        return ImageSpec("filled", resample_of(settings), patch, max_pixels=most * patch**2)

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """The limit is the model's own: a budget changes nothing."""
        patch = image_spec.patch
        rows, columns = fitted(image.shape[0], image.shape[1], patch, image_spec.max_pixels // patch**2)
        return patches(resize(image, rows * patch, columns * patch, image_spec.resample), patch)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        """Its patches are published with the channels of a pixel side by side."""
        order = Reorder((spec.patch, spec.patch, spec.channels), (2, 0, 1), axis=1)
        return [
            Rename(f"{prefix}embeddings.patch_embedding.weight", "vision.patch.weight", order),
            Rename(f"{prefix}embeddings.patch_embedding.bias", "vision.patch.bias"),
            *renames({f"{prefix}post_layernorm": "vision.post_norm"}),
            *clip_rules(prefix),
        ]


def fitted(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of the grid that a picture fills: scaled so that there are as many patches as `most` allows,
    each side rounded up to whole ones."""

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    low, high = SCALES
    while high - low >= EXACTNESS:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    rows, columns = grid(low)
    if rows * columns > most:
        raise SpecError(f"an image of {width} x {height} pixels cannot be brought to {most} patches")
    return rows, columns
