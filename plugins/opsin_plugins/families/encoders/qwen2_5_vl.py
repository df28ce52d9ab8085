"""Qwen2.5-VL's vision transformer: windows in most layers, RMS norms, gated MLP. Source: arXiv 2502.13923."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, integers, number
from opsin_plugins.families.encoders.qwen2_vl import JOINS, LAYER_ATTENTION, Qwen2VLEncoder
from opsin_plugins.spec import Concat, Config, EncoderSpec, Rename, Rule, SpecError, TowerSpec


class Qwen25VLEncoder(Qwen2VLEncoder):
    name = "qwen2_5_vl"
    claims = EncoderSpec(
        model_types=("qwen2_5_vl", "qwen2_5_vl_vision"),
        attention=LAYER_ATTENTION,
        mlp=r"blocks\.{i}\.mlp\.(gate|up|down)_proj",
        not_composed=JOINS,
    )

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        width, merge = integer(config, "hidden_size", 3584), integer(config, "spatial_merge_size", 2)
        base = super().spec({**config, "embed_dim": width, "mlp_ratio": 1}, preprocessor)
        window = integer(config, "window_size", 112) // base.patch
        if window < merge or window % merge:
            raise SpecError(f"window_size of {window} patches is no multiple of spatial_merge_size {merge}")
        return replace(
            base,
            mlp=integer(config, "intermediate_size", 3420),
            activation=activation(config, "hidden_act", "silu"),
            norm="rms",
            gated_mlp=True,
            window=window,
            whole_layers=integers(config, "fullatt_block_indexes", (7, 15, 23, 31)),
        )

    def ticks_per_second(self, config: Config) -> float:
        return number(config, "tokens_per_second", 4)

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        source, mine = f"{prefix}blocks.{{i}}.", "vision.layers.{i}."
        return [
            Rename(f"{prefix}patch_embed.proj.weight", "vision.patch.weight"),
            *renames(
                {
                    f"{source}attn.qkv": f"{mine}attention.qkv",
                    f"{source}attn.proj": f"{mine}attention.out",
                    f"{source}mlp.down_proj": f"{mine}mlp.down",
                }
            ),
            *(
                Concat((f"{source}mlp.gate_proj.{kind}", f"{source}mlp.up_proj.{kind}"), f"{mine}mlp.gate_up.{kind}")
                for kind in ("weight", "bias")
            ),
            *renames({f"{source}norm1": f"{mine}attention_norm", f"{source}norm2": f"{mine}mlp_norm"}, ["weight"]),
        ]
