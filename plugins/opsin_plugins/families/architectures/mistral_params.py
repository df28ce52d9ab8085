"""Pixtral and Mistral Small 3.1 in Mistral's own format: params.json, other names, rotary pairs side by side.
Source: the published mistral-inference code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families.base import end_ids
from opsin_plugins.families.config_fields import flag, integer, layer_count, number, section
from opsin_plugins.families.language import is_tied
from opsin_plugins.families.mistral_names import mistral_groups, mistral_rules
from opsin_plugins.families.pixtral_like import PixtralStyle, instruct_template
from opsin_plugins.loading.read_json import read_json
from opsin_plugins.spec import (
    Config,
    DecoderSpec,
    ModelFiles,
    ModelSpec,
    Pattern,
    ProjectorSpec,
    RopeSpec,
    Rule,
    SpecError,
)

END_OF_SENTENCE = 2
PROJECTOR_EPS = 1e-5
UNFRAMED_SYSTEM = "v3"  # the first version of tekken.json; later ones have [SYSTEM_PROMPT]


class MistralParams(PixtralStyle):
    name = "mistral_params"

    def spec(self, files: ModelFiles) -> ModelSpec:
        params = files.config
        vision = section(params, "vision_encoder")
        decoder = _decoder(files)
        merge = integer(vision, "spatial_merge_size", 1)
        joined = vision.get("mm_projector_id") == "patch_merge"
        if (merge > 1) is not joined or vision.get("mm_projector_id") not in (None, "", "patch_merge"):
            raise SpecError(f"mm_projector_id {vision.get('mm_projector_id')!r} with spatial_merge_size {merge}")
        side = integer(vision, "max_image_size", vision.get("image_size", 1024))
        config: Config = {**vision, "hidden_act": "silu", "image_size": side, "spatial_merge_size": merge}
        settings = {"size": {"longest_edge": side}, "patch_size": integer(vision, "patch_size", 16)}
        tower = self.encoder.spec(config, settings)
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(
                in_width=tower.width,
                hidden=decoder.width,
                out_width=decoder.width,
                activation="gelu",
                merge=merge,
                norm="rms",
                norm_eps=PROJECTOR_EPS if flag(vision, "add_pre_mm_projector_layer_norm") else None,
                bias=flag(vision, "adapter_bias", True),
                joined=tower.width if joined else 0,
            ),
            image=self.encoder.image(tower, config, settings),
            fusion="scatter",
            encoder=self.encoder.name,
            image_token=integer(vision, "image_token_id", 10, least=0),
            eos=(*end_ids(files), END_OF_SENTENCE),
            max_positions=integer(params, "max_position_embeddings", params.get("max_seq_len", 128000)),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return mistral_rules(spec)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return mistral_groups(spec)

    def chat_template(self, files: ModelFiles) -> str | None:
        """By the version of the tokenizer, whose file says how its prompts are made."""
        version = section(read_json(files.directory / "tekken.json"), "config", {}).get("version", UNFRAMED_SYSTEM)
        return instruct_template(framed_system=version != UNFRAMED_SYSTEM, picture_first=True)


def _decoder(files: ModelFiles) -> DecoderSpec:
    params = files.config
    tied = {"tie_word_embeddings": flag(params, "tied_embeddings")}
    width, heads = integer(params, "dim"), integer(params, "n_heads")
    if params.get("sliding_window") is not None:
        raise SpecError(f"sliding_window {params['sliding_window']!r} is not supported yet")
    for key in ("yarn", "llama_4_scaling", "rope_scaling"):  # they turn or scale queries in other ways
        if params.get(key):
            raise SpecError(f"{key} {params[key]!r:.200} is not supported")
    if params.get("moe") is not None:
        raise SpecError("moe: mixtures of experts are not supported")
    return DecoderSpec(
        vocab=integer(params, "vocab_size"),
        width=width,
        layers=layer_count(params, "n_layers"),
        heads=heads,
        kv_heads=integer(params, "n_kv_heads", heads),
        head_dim=integer(params, "head_dim", width // heads),
        mlp=integer(params, "hidden_dim"),
        norm_eps=number(params, "norm_eps", 1e-5),
        rope=RopeSpec(number(params, "rope_theta", 1e4)),
        tied=is_tied(files, tied, "tok_embeddings.weight", "output.weight"),
    )
