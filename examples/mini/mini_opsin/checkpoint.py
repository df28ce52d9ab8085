"""A run's state as one safetensors file: parameters, heads, optimizers, and the counters as JSON in its header.

One file, written beside the old one and renamed over it, so that a crash leaves the old or the new, never a half.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini_opsin.loading import load_model
from mini_opsin.model import Sizes, sizes_of
from mini_opsin.trainer import Trainer

ADAM = ("step", "exp_avg", "exp_avg_sq")
HEADS, MUON = "heads.", "muon."


@dataclass
class State:
    tensors: dict[str, Tensor]
    counters: dict[str, float]

    @property
    def model(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.tensors.items() if name.startswith("model.")}

    @property
    def heads(self) -> dict[str, Tensor]:
        return {name.removeprefix(HEADS): t for name, t in self.tensors.items() if name.startswith(HEADS)}

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.model)


def read(path: Path) -> State:
    """Raises ValueError for a safetensors file that no run wrote."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if "counters" not in header:
        raise ValueError(f"{path} holds no counters: it is no checkpoint of a run")
    return State(load_file(path), json.loads(header["counters"]))


def save(trainer: Trainer, path: Path) -> None:
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in trainer.named.items()}
    tensors |= {MUON + name: buffer for name, buffer in trainer.muon.buffers.items()}
    for name, p in trainer.adam_named.items() if trainer.adam.state else ():
        tensors |= {f"adam.{kind}.{name}": trainer.adam.state[p][kind] for kind in ADAM}
    counters = {"step": trainer.step, "images": trainer.images, "questions": trainer.questions}
    header = {"counters": json.dumps(counters | {"fraction": trainer.fraction})}
    unfinished = path.with_suffix(".tmp")
    save_file({name: t.contiguous() for name, t in tensors.items()}, unfinished, header)
    unfinished.replace(path)


def resume(trainer: Trainer, state: State) -> None:
    """Goes on where the state was saved, optimizers included."""
    tensors, counters = state.tensors, state.counters
    begun = int(counters["step"]) > 0  # AdamW has no state before its first step
    adam = {f"adam.{kind}.{name}" for kind in ADAM for name in trainer.adam_named if begun}
    _same_names(tensors, {*trainer.named, *(MUON + name for name in trainer.muon.buffers), *adam})
    with torch.no_grad():
        for name, p in trainer.named.items():
            p.copy_(tensors[name])
        for name, buffer in trainer.muon.buffers.items():
            buffer.copy_(tensors[MUON + name])
    for name, p in trainer.adam_named.items() if begun else ():
        loaded = {kind: tensors[f"adam.{kind}.{name}"] for kind in ADAM}
        trainer.adam.state[p] = {k: t if k == "step" else t.to(p.device) for k, t in loaded.items()}
    trainer.step, trainer.images = int(counters["step"]), int(counters["images"])
    trainer.questions, trainer.fraction = int(counters["questions"]), counters["fraction"]
    trainer.reseed()


def init_from_export(trainer: Trainer, directory: Path, heads: Path | None) -> None:
    """An exported model and, where kept, the heads of the auxiliary losses; the optimizers start fresh."""
    exported = exported_weights(directory)
    found = {HEADS + name: t for name, t in load_file(heads).items()} if heads else {}
    _same_names(exported | found, {name for name in trainer.named if found or not name.startswith(HEADS)})
    with torch.no_grad():
        for name, tensor in (exported | found).items():
            trainer.named[name].copy_(tensor)


def exported_weights(directory: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_model(directory).named_parameters()}


def _same_names(found: Mapping[str, Tensor], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing or unknown:
        raise ValueError(f"the file does not fit the model: missing {missing[:5]}, unknown {unknown[:5]}")
