"""A model filled from its checkpoint: every parameter once, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.decoder import Embedding
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
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


def load_weights(
    model: Model,
    rules: Sequence[Rule],
    files: ModelFiles,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills the model. Raises SpecError listing unmatched and missing keys, wrong shapes and types before any weight is
    read. Peak private memory is the model and one tensor: the files are mapped, not read in."""
    places = targets(model)
    plan = assign(files.tensors, rules, {name: place.shape for name, place in places.items()})
    sizes = {name: sum(_numel(files.tensors[s.key]) for s in sources) for name, sources in plan.items()}
    total, done = sum(sizes.values()), 0
    with ExitStack() as stack, torch.no_grad():
        shards: dict[Path, object] = {}
        # In the order of the files, so that pages are read once and forward.
        for name in sorted(plan, key=lambda n: (str(files.tensors[plan[n][0].key].file), plan[n][0].key)):
            stored = ((s, _read(shards, stack, files.tensors[s.key], s.key)) for s in plan[name])
            # What is stored is brought into the model's order first; the place then packs it in its own format.
            places[name].fill([taken(source, tensor) for source, tensor in stored])
            done += sizes[name]
            progress(done, total)


def _read(shards: dict[Path, object], stack: ExitStack, info: TensorInfo, key: str) -> Tensor | Codes:
    if info.packing is not None:
        return unpack(key, info, lambda part, stored: _stored(shards, stack, stored, part))
    return _stored(shards, stack, info, key)


def _stored(shards: dict[Path, object], stack: ExitStack, info: TensorInfo, key: str) -> Tensor:
    if info.file not in shards:
        shards[info.file] = stack.enter_context(safe_open(info.file, framework="pt"))
    found: Tensor = shards[info.file].get_tensor(key)  # type: ignore[attr-defined]
    return found


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
