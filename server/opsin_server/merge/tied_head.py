"""An output head that is the embedding, and that an adapter changes: it becomes a tensor of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opsin_plugins.blocks.decoder import HEAD
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.weight_matching import WeightMatcher
from opsin_plugins.spec import ModelSpec
from opsin_server.adapters.convert import Converted
from opsin_server.merge.changes import Plan

EMBEDDING = "decoder.embedding.weight"
NAMES = ("lm_head.weight", "language_model.lm_head.weight", "output.weight")


@dataclass(frozen=True)
class UntiedHead:
    """name: of the head's tensor. copied: of the tensor that it starts as, itself where the head is saved as well."""

    name: str
    copied: str
    spec: ModelSpec


def untied_head(model: OpenModel, converted: Converted, plan: Plan) -> UntiedHead | None:
    """None: the head is a tensor of its own already, or stays tied."""
    if not model.spec.decoder.tied or not any(name.startswith(f"{HEAD}.") for name in converted.tensors):
        return None
    spec = replace(model.spec, decoder=replace(model.spec.decoder, tied=False))
    matcher = WeightMatcher(model.architecture.weights(spec), {})
    (embedding,) = (source.key for source in plan[EMBEDDING])
    saved = [key for key in model.files.tensors if matcher.would_fill(key) == f"{HEAD}.weight"]
    if saved:
        return UntiedHead(saved[0], saved[0], spec)
    # In one dialect with the embedding: LLaVA's older names have the language model's own before them.
    names = sorted(
        NAMES, key=lambda name: embedding.startswith("language_model.") != name.startswith("language_model.")
    )
    name = next(name for name in names if matcher.would_fill(name) == f"{HEAD}.weight")
    return UntiedHead(name, embedding, spec)
