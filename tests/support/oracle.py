"""transformers as the oracle: the same prompt through its model, and ours beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opsin_kernels.cross_attention import CrossRun, CrossRuns
from opsin_kernels.layout import Layout
from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.decoder import ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs, Visual
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.rope import frequencies
from opsin_plugins.spec import U8, Architecture, Expanded, ImageBudget, ModelSpec, VisualItem
from support import tiny
from support.inputs import their_inputs


@dataclass
class Ours:
    model: Model
    architecture: Architecture
    spec: ModelSpec


def load(
    directory: Path,
    quantize: Quantize = "none",
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, str] | None = None,
) -> Ours:
    registry = Registry()
    files = read_model_files(directory, options)
    architecture = registry.architecture(files)
    spec = architecture.spec(files)
    model = build_model(spec, registry, quantize=quantize, dtype=dtype)
    load_weights(model, architecture.weights(spec), files)
    return Ours(model, architecture, spec)


def saved(model: Any, directory: Path, **how: Any) -> Ours:
    """A tiny model saved as published, and loaded the way in which it equals transformers."""
    return load(tiny.save(model, directory), options=tiny.FAMILIES[tiny.family_of(model)].options, **how)


@dataclass
class Prompt:
    """sizes: (height, width) of the pictures as they came."""

    expanded: Expanded
    items: Sequence[VisualItem]
    positions: np.ndarray
    delta: int
    sizes: Sequence[tuple[int, int]] = ()

    @property
    def ids(self) -> Tensor:
        return torch.from_numpy(self.expanded.ids).long()


def prompt(ours: Ours, ids: Sequence[int], images: Sequence[U8]) -> Prompt:
    items = ours.architecture.preprocess(images, ours.spec, ImageBudget())
    expanded = ours.architecture.expand(ids, items, ours.spec, tiny.encode)
    positions, delta = ours.architecture.positions(expanded, items, ours.spec)
    return Prompt(expanded, items, positions, delta, [(i.shape[0], i.shape[1]) for i in images])


def our_logits(ours: Ours, prompts: Sequence[Prompt]) -> list[Tensor]:
    """All prompts packed into one batch without a cache, as training runs them: logits [T, vocab] of each."""
    lengths = [len(p.ids) for p in prompts]
    positions = torch.from_numpy(np.concatenate([p.positions for p in prompts], 1)).long()
    rows = ModelInputs(positions, Layout(lengths, lengths))
    rope, visual, items = ours.spec.decoder.rope, None, [item for p in prompts for item in p.items]
    if any(rope.stretch(n) != 1 for n in lengths):
        parts = [np.tile(frequencies(rope, ours.spec.decoder.head_dim, rope.stretch(n)), (n, 1)) for n in lengths]
        rows.frequencies = torch.from_numpy(np.concatenate(parts))
    if items:
        pixels = torch.from_numpy(np.concatenate([i.pixels for i in items]))
        arrange = [None if i.arrange is None else torch.from_numpy(i.arrange).long() for i in items]
        tokens = ours.model.encode(pixels, items, arrange)
        if ours.spec.cross is None:
            visual = Visual(torch.cat(tokens), torch.cat(_visual_rows(prompts)))
        else:
            rows.cross = _cross_inputs(prompts, tokens)
    states = ours.model(torch.cat([p.ids for p in prompts]), rows, None, visual)
    return list(ours.model.logits(states).split(lengths))


def _visual_rows(prompts: Sequence[Prompt]) -> list[Tensor]:
    found, start = [], 0
    for p in prompts:
        for span in p.expanded.spans:
            rows = torch.arange(start + span.start, start + span.start + span.length)
            found.append(rows if span.visual_mask is None else rows[torch.tensor(span.visual_mask)])
        start += len(p.ids)
    return found


def _cross_inputs(prompts: Sequence[Prompt], tokens: Sequence[Tensor]) -> CrossInputs | None:
    """Row by row, without the engine's runs."""
    starts = np.cumsum([0, *(len(t) for t in tokens)])
    runs, rows, before, row, first = [], [], [], 0, 0
    for p in prompts:
        seen = np.zeros((len(p.ids), 2), np.int32) if p.expanded.visible is None else p.expanded.visible
        for lo, hi in seen.tolist():
            if lo != hi:
                hidden = [0 if lo < 0 else item.hidden for item in p.items]
                slots = [
                    torch.arange(starts[first + i], starts[first + i + 1] - hidden[i]) for i in range(max(lo, 0), hi)
                ]
                runs.append(CrossRun(1, torch.cat(slots)))
                rows.append(row)
                before.append(lo < 0)
            row += 1
        first += len(p.items)
    if not runs:
        return None
    return CrossInputs(CrossRuns(runs), torch.tensor(rows), torch.tensor(before), states=torch.cat(list(tokens)))


def their_logits(model: PreTrainedModel, ours: Ours, asked: Prompt) -> Tensor:
    return model(**their_inputs(ours.spec, asked)).logits[0]


def their_tokens(model: PreTrainedModel, ours: Ours, asked: Prompt, count: int) -> list[int]:
    """Greedy, through transformers' own generate."""
    out = model.generate(
        **their_inputs(ours.spec, asked), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, len(asked.ids) :].tolist()


def picture(seed: int, height: int, width: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
