"""A model filled from its checkpoint: every parameter once, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor, nn

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.decoder import Embedding
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.unpack import unpack
from opsin_plugins.loading import weight_matching
from opsin_plugins.loading.weight_matching import Source, assign
from opsin_plugins.spec import ModelFiles, Reorder, Rule, TensorInfo


@dataclass(frozen=True)
class Target:
    """A place for weights: its shape, how it is filled, and the bytes it will take."""

    shape: tuple[int, ...]
    fill: Callable[[Sequence[Tensor | Codes]], None]


def targets(model: nn.Module) -> dict[str, Target]:
    """Every parameter by the name that weight rules use; a linear's weight is one name whatever its parts."""
    found: dict[str, Target] = {}
    inside: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            shape = (module.outputs, module.inputs) if isinstance(module, Linear) else (module.vocab, module.width)
            found[f"{path}.weight"] = Target(shape, module.fill)
            inside.update(f"{path}.{name}" for name, _ in module.named_parameters() if name != "bias")
    for path, parameter in model.named_parameters():
        if path not in inside:
            found[path] = Target(tuple(parameter.shape), _rows_into(parameter.data))
    return found


def _rows_into(place: Tensor) -> Callable[[Sequence[Tensor | Codes]], None]:
    def fill(tensors: Sequence[Tensor | Codes]) -> None:
        at = 0
        for tensor in tensors:
            place[at : at + len(tensor)].copy_(tensor.dequantized() if isinstance(tensor, Codes) else tensor)
            at += len(tensor)

    return fill


class Checkpoint:
    """The weights of a checkpoint as a model takes them, each read when it is asked for: the files are mapped, not read
    in. Raises SpecError listing unmatched and missing keys, wrong shapes and types before any weight is read."""

    def __init__(self, model: nn.Module, rules: Sequence[Rule], files: ModelFiles) -> None:
        self._files, self._places = files, targets(model)
        self.plan = assign(files.tensors, rules, {name: place.shape for name, place in self._places.items()})
        self._shards: dict[Path, object] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def in_order(self) -> list[str]:
        """Names of weights in the order of the files, so that pages are read once and forward."""
        return sorted(
            self.plan, key=lambda n: (str(self._files.tensors[self.plan[n][0].key].file), self.plan[n][0].key)
        )

    def size(self, name: str) -> int:
        """Numbers that are stored for a weight."""
        return sum(_numel(self._files.tensors[source.key]) for source in self.plan[name])

    def shape(self, source: Source) -> tuple[int, ...]:
        """Of what a source brings to its weight."""
        return source.shape(self._files.tensors[source.key].shape)

    def read(self, key: str) -> Tensor | Codes:
        """As it is stored."""
        info = self._files.tensors[key]
        if info.packing is not None:
            return unpack(key, info, lambda part, stored: self._stored(stored, part))
        return self._stored(info, key)

    def weight(self, name: str) -> Tensor:
        """A weight of the model as numbers, F32."""
        parts = [taken(source, self.read(source.key)) for source in self.plan[name]]
        return torch.cat([(part.dequantized() if isinstance(part, Codes) else part).float() for part in parts])

    @torch.no_grad()
    def fill(self, name: str, instead: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """instead: tensors that are taken in place of the stored ones, by key."""
        stored = ((s, instead[s.key] if s.key in instead else self.read(s.key)) for s in self.plan[name])
        # What is stored is brought into the model's order first; the place then packs it in its own format.
        self._places[name].fill([taken(source, tensor) for source, tensor in stored])

    def _stored(self, info: TensorInfo, key: str) -> Tensor:
        if info.file not in self._shards:
            self._shards[info.file] = self._opened.enter_context(safe_open(info.file, framework="pt"))
        found: Tensor = self._shards[info.file].get_tensor(key)  # type: ignore[attr-defined]
        return found


def load_weights(
    model: nn.Module,
    rules: Sequence[Rule],
    files: ModelFiles,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills the model. Raises SpecError as `Checkpoint` does. Peak private memory is the model and one tensor."""
    with Checkpoint(model, rules, files) as checkpoint:
        total, done = sum(map(checkpoint.size, checkpoint.plan)), 0
        for name in checkpoint.in_order():
            checkpoint.fill(name)
            done += checkpoint.size(name)
            progress(done, total)


def _numel(info: TensorInfo) -> int:
    return int(torch.Size(info.shape).numel())


def taken(source: Source, tensor: Tensor | Codes) -> Tensor | Codes:
    """What a source says is taken of the tensor under its key, in the model's order. Codes stay what they are where
    rows alone change places."""
    if isinstance(tensor, Codes):
        if source.reorder is None or source.reorder.axis == 0:
            return tensor.of_rows(lambda rows: _taken(source, rows))
        tensor = tensor.dequantized()
    return _taken(source, tensor)


def _taken(source: Source, tensor: Tensor) -> Tensor:
    return reordered(tensor if source.rows is None else tensor[slice(*source.rows[:2])], source.reorder)


def reordered(tensor: Tensor, reorder: Reorder | None) -> Tensor:
    """The tensor with one dimension's entries in the order that the model has them."""
    return weight_matching.reordered(tensor, reorder, torch.permute)
