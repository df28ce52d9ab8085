"""Qwen3-VL's vision transformer: a stretched position table beside the turns, taps for the decoder. Source: arXiv
2511.21631."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsin_plugins.families.config_fields import activation, integer, integers, layer_count
from opsin_plugins.families.encoders.qwen2_vl import JOINS, LAYER_ATTENTION, Qwen2VLEncoder
from opsin_plugins.families.image_processors import QWEN3_VL_VIDEO
from opsin_plugins.spec import Config, EncoderSpec, Rename, Rule, SpecError, TowerSpec


class Qwen3VLEncoder(Qwen2VLEncoder):
    name = "qwen3_vl"
    mlp = ("mlp.linear_fc1", "mlp.linear_fc2")
    video_processor = QWEN3_VL_VIDEO
    video_sampling = "ends"
    video_budget = "video"
    claims = EncoderSpec(
        model_types=("qwen3_vl", "qwen3_vl_vision"),
        attention=LAYER_ATTENTION,
        mlp=r"blocks\.{i}\.mlp\.linear_fc[12]",
        not_composed=JOINS,
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        width, depth = integer(config, "hidden_size", 1152), layer_count(config, "depth", 27)
        sizes = {"depth": depth, "patch_size": 16, "embed_dim": width, "mlp_ratio": 1}
        base = super().spec({**sizes, **config, "embed_dim": width}, preprocessor)
        taps = integers(config, "deepstack_visual_indexes", (8, 16, 24))
        if list(taps) != sorted(set(taps)) or (taps and taps[-1] >= depth):
            raise SpecError(f"deepstack_visual_indexes {taps} of a tower with {depth} layers")
        return replace(
            base,
            mlp=integer(config, "intermediate_size", 4304),
            activation=activation(config, "hidden_act", "gelu_pytorch_tanh"),
            position="resized_rope",
            positions=integer(config, "num_position_embeddings", 2304),
            patch_bias=True,
            taps=taps,
        )

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        return [
            *super().weights(spec, prefix),
            Rename(f"{prefix}patch_embed.proj.bias", "vision.patch.bias"),
            Rename(f"{prefix}pos_embed.weight", "vision.positions"),
        ]
