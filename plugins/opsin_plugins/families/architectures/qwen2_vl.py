"""Qwen2-VL: any resolution, merged patches scattered into the prompt, M-RoPE. Source: arXiv 2409.12191."""

from __future__ import annotations

from opsin_plugins.families.encoders.qwen2_vl import Qwen2VLEncoder
from opsin_plugins.families.qwen2_like import Qwen2Style
from opsin_plugins.spec import ProjectorSpec, TowerSpec


class Qwen2VL(Qwen2Style):
    name = "qwen2_vl"
    encoder = Qwen2VLEncoder()
    merger_norm = ("weight", "bias")
    width_key = "hidden_size"

    def projector(self, tower: TowerSpec, merge: int, width: int) -> ProjectorSpec:
        return ProjectorSpec(tower.width, tower.width * merge**2, width, "gelu", merge, norm_eps=1e-6)
