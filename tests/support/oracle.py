"""transformers as the oracle: the same prompt through its model, and ours beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.checkpoint import load_weights, targets
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.blocks.weight_policy import WeightPolicy, declared_forms, published_halves
from opsin_plugins.conformance.batches import Prompt, whole
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import U8, Architecture, ImageBudget, ModelSpec, VisualItem
from support import tiny
from support.inputs import their_inputs


@dataclass
class Ours:
    model: Model
    architecture: Architecture
    spec: ModelSpec


def load(
    directory: Path,
    policy: WeightPolicy = WeightPolicy(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, str] | None = None,
) -> Ours:
    registry = Registry()
    files = read_model_files(directory, options)
    architecture = registry.architecture(files)
    spec = architecture.spec(files)
    model = build_model(spec, registry, policy=policy, dtype=dtype)
    load_weights(model, architecture.weights(spec), files)
    return Ours(model, architecture, spec)


def with_declared(path: Path, mmproj: Path | None = None, kinds: Collection[str] = ()) -> Ours:
    """A checkpoint's packed weights, and those of 16 bits, as it has them. kinds: of codes that activations are
    quantized to, where the checkpoint declares it."""
    opened = open_model(path, mmproj=mmproj)
    rules = opened.architecture.weights(opened.spec)
    sketch = build_model(opened.spec, opened.registry, device="meta")
    places = {name: target.shape for name, target in targets(sketch).items()}
    plan, tensors = assign(opened.files.tensors, rules, places), opened.files.tensors
    activations = ActivationPolicy(frozenset(kinds))
    policy = WeightPolicy(
        declared=declared_forms(plan, tensors), halves=published_halves(plan, tensors), activations=activations
    )
    model = build_model(opened.spec, opened.registry, policy=policy)
    load_weights(model, rules, opened.files)
    return Ours(model, opened.architecture, opened.spec)


def saved(model: Any, directory: Path, **how: Any) -> Ours:
    """A tiny model saved as published, and loaded the way in which it equals transformers."""
    return load(tiny.save(model, directory), options=tiny.FAMILIES[tiny.family_of(model)].options, **how)


def prompt(ours: Ours, ids: Sequence[int], visuals: Sequence[U8 | VisualItem]) -> Prompt:
    """visuals: pictures, and videos that are prepared."""
    images = [one for one in visuals if not isinstance(one, VisualItem)]
    prepared = iter(ours.architecture.preprocess(images, ours.spec, ImageBudget()))
    items = [one if isinstance(one, VisualItem) else next(prepared) for one in visuals]
    expanded = ours.architecture.expand(ids, items, ours.spec, tiny.encode)
    positions, delta = ours.architecture.positions(expanded, items, ours.spec)
    sizes = [(i.shape[0], i.shape[1]) for i in images]
    return Prompt(expanded, items, positions, delta, ours.spec.decoder.rope, sizes)


def our_logits(ours: Ours, prompts: Sequence[Prompt]) -> list[Tensor]:
    """All prompts packed into one batch without a cache, as training runs them: logits [T, vocab] of each."""
    return whole(ours.model, prompts)


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
