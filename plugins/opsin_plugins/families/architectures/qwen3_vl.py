"""Qwen3-VL: features of earlier tower layers are added after the first decoder layers. Source: arXiv 2511.21631."""

from __future__ import annotations

from opsin_plugins.families.base import renames
from opsin_plugins.families.encoders.qwen3_vl import Qwen3VLEncoder
from opsin_plugins.families.language import TextDefaults
from opsin_plugins.families.positions import Written
from opsin_plugins.families.qwen2_like import Qwen2Style
from opsin_plugins.families.videos import timestamps
from opsin_plugins.spec import (
    Encode,
    LevelsProjectorSpec,
    ModelSpec,
    ProjectorSpec,
    Rule,
    TowerSpec,
    VideoPlan,
    VisualItem,
)

START, END = "<|vision_start|>", "<|vision_end|>"
MERGER, LEVEL = "model.visual.merger.", "model.visual.deepstack_merger_list.{i}."


class Qwen3VL(Qwen2Style):
    name = "qwen3_vl"
    encoder = Qwen3VLEncoder()
    merger_mlp = r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"
    width_key = "out_hidden_size"
    text = TextDefaults(4096, 32, 32, 32, 22016, 151936, 1e-6, 5e5, 128000, head_norm=True, head_dim=128)
    fusion = "levels"
    default_system = False

    def projector(self, tower: TowerSpec, merge: int, width: int) -> ProjectorSpec:
        joined = tower.width * merge**2
        return LevelsProjectorSpec(tower.width, joined, width, "gelu", merge, norm_eps=1e-6, levels=len(tower.taps))

    def merger_rules(self) -> list[Rule]:
        parts = {"norm": "norm", "linear_fc1": "mlp.up", "linear_fc2": "mlp.down"}
        return [
            *renames({f"{MERGER}{theirs}": f"projector.{ours}" for theirs, ours in parts.items()}),
            *renames({f"{LEVEL}{theirs}": f"projector.levels.{{i}}.{ours}" for theirs, ours in parts.items()}),
        ]

    def write_video(self, item: VisualItem, plan: VideoPlan, spec: ModelSpec, encode: Encode) -> Written:
        """Each patch in time with its seconds before it."""
        assert spec.video is not None
        assert spec.video_token is not None
        ids: list[int] = []
        visual: list[bool] = []
        tokens = item.tokens // item.grid[0]
        for seconds in timestamps(plan, spec.video.temporal):
            before, behind = encode(f"<{seconds:.1f} seconds>{START}"), encode(END)
            ids += [*before, *[spec.video_token] * tokens, *behind]
            visual += [*[False] * len(before), *[True] * tokens, *[False] * len(behind)]
        return ids, tuple(visual)
