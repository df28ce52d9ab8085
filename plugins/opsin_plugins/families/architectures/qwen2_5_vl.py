"""Qwen2.5-VL: Qwen2-VL with window attention in the tower. Source: arXiv 2502.13923."""

from __future__ import annotations

from opsin_plugins.families.encoders.qwen2_5_vl import Qwen25VLEncoder
from opsin_plugins.families.qwen2_like import Qwen2Style
from opsin_plugins.spec import ProjectorSpec, TowerSpec


class Qwen25VL(Qwen2Style):
    name = "qwen2_5_vl"
    encoder = Qwen25VLEncoder()
    merger_norm = ("weight",)
    width_key = "out_hidden_size"

    def projector(self, tower: TowerSpec, merge: int, width: int) -> ProjectorSpec:
        return ProjectorSpec(tower.width, tower.width * merge**2, width, "gelu", merge, norm="rms", norm_eps=1e-6)
