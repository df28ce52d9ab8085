"""What CLIP and SigLIP have alike as dual encoders: pictures prepared as their vision encoder does, and the names of
their text towers."""

from __future__ import annotations

from opsin_plugins.families.base import renames
from opsin_plugins.families.encoders.clip import POSITION_IDS, layer_rules
from opsin_plugins.loading.registry import installed_encoder
from opsin_plugins.spec import (
    API_VERSION,
    U8,
    DualEncoderSpec,
    Ignore,
    ImageBudget,
    Rename,
    Rule,
    VisualItem,
)

VISION, TEXT = "vision_model.", "text_model."
MOST_TOKENS = 2**16  # positions of a text tower; published ones have 64, 77 and 248


class DualEncoderFamily:
    """A base that a dual encoder may use."""

    api_version = API_VERSION
    builder = "opsin_plugins.blocks.dual_encoder:DualEncoderModel"

    def preprocess(self, image: U8, spec: DualEncoderSpec) -> VisualItem:
        pixels, grid = installed_encoder(spec.encoder).preprocess(image, spec.image, ImageBudget())
        return VisualItem(pixels, grid, tokens=len(pixels) + spec.vision.keep_class_token)


def text_rules() -> list[Rule]:
    """Ids, positions, layers and the last norm of a text tower."""
    return [
        Rename(f"{TEXT}embeddings.token_embedding.weight", "text.tokens"),
        Rename(f"{TEXT}embeddings.position_embedding.weight", "text.positions"),
        Ignore(f"{TEXT}{POSITION_IDS}", "a buffer that old checkpoints saved"),
        *layer_rules(f"{TEXT}encoder.layers.{{i}}.", "text.layers.{i}."),
        *renames({f"{TEXT}final_layer_norm": "text.final_norm"}),
    ]
