"""Adapter files as the engine reads them, with random factors; and models into which they are merged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from opsin_plugins.blocks.adapter_slots import AdapterFactors
from opsin_plugins.blocks.decoder import HEAD
from opsin_plugins.conformance.adapters import add_to, random_adapter
from opsin_plugins.loading.linears import linears_of, shapes_pictures
from opsin_plugins.loading.registry import Registry
from opsin_server.ipc.messages import AdapterRef
from support.oracle import Ours


@dataclass
class Saved:
    """merged: another copy of the base model, with the adapter in its weights."""

    ref: AdapterRef
    merged: Ours


def write(path: Path, adapter: AdapterFactors) -> AdapterRef:
    tensors = {
        f"{name}.{segment}.{half}": getattr(factors, half).contiguous()
        for name, given in adapter.items()
        for segment, factors in enumerate(given)
        if factors is not None
        for half in ("a", "b")
    }
    scales = {f"{key.removesuffix('.a')}.scale": torch.ones(1) for key in tensors if key.endswith(".a")}
    save_file(tensors | scales, path)
    return AdapterRef(hashlib.sha256(path.read_bytes()).digest(), str(path))


def random(ours: Ours, rank: int, seed: int, pictures: bool = True) -> AdapterFactors:
    """Of all linears but a tied head. pictures: also of those on which visual tokens depend."""
    linears = linears_of(ours.spec, Registry())
    tied = ours.spec.decoder.tied
    chosen = {n: s for n, s in linears.items() if not (n == HEAD and tied) and (pictures or not shapes_pictures(n))}
    return random_adapter(chosen, rank, seed)


@torch.no_grad()
def merge(ours: Ours, adapter: AdapterFactors) -> None:
    """Into its weights, for good."""
    modules = dict(ours.model.named_modules())
    for name, given in adapter.items():
        add_to(modules[name], given)
