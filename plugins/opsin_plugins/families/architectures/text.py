"""Language models without vision: Llama, Mistral, Qwen2 and Qwen3 as published. Sources: arXiv 2302.13971, 2310.06825,
2407.10671."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from opsin_plugins.families.base import Family, end_ids, llama_groups
from opsin_plugins.families.language import TEXT, decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.families.mistral_names import mistral_names
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, Prefix, PublishedNames, Rule


class TextModel(Family):
    name: ClassVar[str]

    def spec(self, files: ModelFiles) -> ModelSpec:
        config, defaults = files.config, TEXT[self.name]
        return ModelSpec(
            family=self.name,
            decoder=decoder_spec(config, is_tied(files, config), defaults),
            vision=None,
            projector=None,
            image=None,
            fusion=None,
            encoder=None,
            image_token=None,
            eos=end_ids(files),
            max_positions=max_positions(config, defaults),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        """Models of embeddings are often published without the head, and without what stands before the rest then."""
        alone = [Prefix(f"{name}.", f"model.{name}.") for name in ("layers", "embed_tokens", "norm")]
        return [*alone, *decoder_rules(spec.decoder, "model.")]

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llama_groups(r"model\.layers\.\d+\.")


class Llama(TextModel):
    name = "llama"


class Mistral(TextModel):
    name = "mistral"

    def other_names(self, spec: ModelSpec) -> Sequence[PublishedNames]:
        return [mistral_names(spec)]


class Qwen2(TextModel):
    name = "qwen2"


class Qwen3(TextModel):
    name = "qwen3"
