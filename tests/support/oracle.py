"""transformers as the oracle: the same prompt through its model, and ours beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opsin_kernels.attention import Layout
from opsin_plugins.blocks.decoder import Rows
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.checkpoint import load_weights
from opsin_plugins.files import read_model_files
from opsin_plugins.fusions.base import Visual
from opsin_plugins.registry import Registry
from opsin_plugins.spec import U8, Architecture, Expanded, ImageBudget, ModelSpec, TowerSpec, VisualItem
from support import tiny


@dataclass
class Ours:
    model: Model
    architecture: Architecture
    spec: ModelSpec


def load(directory: Path, quantize: Quantize = "none", dtype: torch.dtype = torch.float32) -> Ours:
    registry = Registry()
    files = read_model_files(directory)
    architecture = registry.architecture(files)
    spec = architecture.spec(files)
    model = build_model(spec, registry, quantize=quantize, dtype=dtype)
    load_weights(model, architecture.weights(spec), files)
    return Ours(model, architecture, spec)


@dataclass
class Prompt:
    expanded: Expanded
    items: Sequence[VisualItem]
    positions: np.ndarray
    delta: int

    @property
    def ids(self) -> Tensor:
        return torch.from_numpy(self.expanded.ids).long()


def prompt(ours: Ours, ids: Sequence[int], images: Sequence[U8]) -> Prompt:
    items = ours.architecture.preprocess(images, ours.spec, ImageBudget())
    expanded = ours.architecture.expand(ids, items, ours.spec)
    return Prompt(expanded, items, *ours.architecture.positions(expanded, items, ours.spec))


def our_logits(ours: Ours, prompts: Sequence[Prompt]) -> list[Tensor]:
    """All prompts packed into one batch without a cache, as training runs them: logits [T, vocab] of each."""
    lengths = [len(p.ids) for p in prompts]
    items = [item for p in prompts for item in p.items]
    visual = None
    if items:
        pixels = torch.from_numpy(np.concatenate([i.pixels for i in items]))
        starts = np.cumsum([0, *lengths])
        rows = [
            torch.arange(start + s.start, start + s.start + s.length)
            for start, p in zip(starts, prompts, strict=False)
            for s in p.expanded.spans
        ]
        visual = Visual(ours.model.encode(pixels, [i.grid for i in items]), torch.cat(rows))
    positions = torch.from_numpy(np.concatenate([p.positions for p in prompts], 1)).long()
    states = ours.model(torch.cat([p.ids for p in prompts]), Rows(positions, Layout(lengths, lengths)), None, visual)
    return list(ours.model.logits(states).split(lengths))


def normalised(item: VisualItem, vision: TowerSpec) -> Tensor:
    """F32 [N, 3, p, p] as the published processors give it."""
    pixels = torch.from_numpy(item.pixels).view(-1, 3, vision.patch, vision.patch).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (vision.mean, vision.std))
    return (pixels - mean) / std


def their_inputs(ours: Ours, asked: Prompt) -> dict[str, Tensor]:
    ids, vision = asked.ids[None], ours.spec.vision
    assert vision is not None
    if ours.spec.family == "qwen2_vl":
        # (without images the model gives its own positions, which are the plain ones)
        if not asked.items:
            return {"input_ids": ids}
        patches = [normalised(i, vision)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1) for i in asked.items]
        return {
            "input_ids": ids,
            "pixel_values": torch.cat(patches),
            "image_grid_thw": torch.tensor([i.grid for i in asked.items]),
            "mm_token_type_ids": (ids == tiny.IMAGE_TOKEN).int(),
        }
    inputs = {"input_ids": ids}
    if asked.items:
        tiles = []
        for item in asked.items:
            _, rows, columns = item.grid
            split = normalised(item, vision).view(rows, columns, 3, vision.patch, vision.patch).permute(2, 0, 3, 1, 4)
            tiles.append(split.reshape(3, rows * vision.patch, columns * vision.patch))
        inputs["pixel_values"] = torch.stack(tiles)
    return inputs


def their_logits(model: PreTrainedModel, ours: Ours, asked: Prompt) -> Tensor:
    return model(**their_inputs(ours, asked)).logits[0]


def their_tokens(model: PreTrainedModel, ours: Ours, asked: Prompt, count: int) -> list[int]:
    """Greedy, through transformers' own generate."""
    out = model.generate(
        **their_inputs(ours, asked), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, len(asked.ids) :].tolist()


def picture(seed: int, height: int, width: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
