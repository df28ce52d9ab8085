"""A PEFT adapter brought into the engine's own form: by the model's linears and segments, in its order of rows.

Whatever is in the files is used or refused: an adapter that is served computes all that it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opsin_plugins.loading.lora_targets import LoraTarget
from opsin_plugins.loading.weight_matching import Match, reordered
from opsin_plugins.spec import SpecError
from opsin_server.adapters.base_model import BaseModel, groups_of
from opsin_server.adapters.module_names import AdapterKey, read_key
from opsin_server.adapters.peft_config import PeftConfig
from opsin_server.adapters.problems import BadAdapter
from opsin_server.adapters.tensor_file import BitTensor, of_numbers, read_tensors, write_tensors


@dataclass(frozen=True)
class UnusedFactors:
    """Of a layer that is published and does not run: a [rank, inputs], b [outputs, rank] as they are in the file."""

    a: BitTensor
    b: BitTensor
    scale: float


@dataclass(frozen=True)
class Converted:
    """tensors: of the engine's file (`engine.running.adapter_loader` says what they are). unused: by module. rank: the
    largest. targets: modules by group. projector: trained tensors of the projector. tensors_read: of the adapter's
    files, all of which are in `tensors`, of a layer that does not run, or equal to the base's. notes: for whoever loads
    it."""

    tensors: Mapping[str, BitTensor]
    unused: Mapping[str, UnusedFactors]
    rank: int
    targets: Mapping[str, int]
    projector: int
    tensors_read: int
    notes: tuple[str, ...]

    def write(self, file: Path) -> None:
        write_tensors(file, self.tensors)


@dataclass
class _Read:
    """What the files hold, sorted."""

    halves: dict[str, dict[str, tuple[str, BitTensor]]] = field(default_factory=dict)  # module -> a and b, with keys
    whole: dict[str, tuple[AdapterKey, BitTensor]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    count: int = 0


def convert(config: PeftConfig, files: Sequence[Path], base: BaseModel) -> Converted:
    """files: safetensors, the adapter's own first. Raises BadAdapter, listing all that is wrong."""
    read = _read(files)
    tensors: dict[str, BitTensor] = {}
    unused: dict[str, UnusedFactors] = {}
    used, largest = [], 0
    for module, halves in sorted(read.halves.items()):
        problems, placed = _factors(module, halves, config, base)
        read.problems += problems
        if problems:
            continue
        if placed is None:
            unused[module] = UnusedFactors(halves["a"][1], halves["b"][1], config.scale_of(module))
            continue
        used.append(module)
        largest = max(largest, halves["a"][1].shape[0])
        for name, tensor in placed.items():
            if name in tensors:
                read.problems.append(
                    f"{halves['a'][0]}: another key changes the same layer ({name.rpartition('.')[0]})"
                )
            tensors[name] = tensor
    if too_large := [rank for rank in map(_rank_of, read.halves.values()) if rank > base.limits.rank]:
        most = f"the server takes up to {base.limits.rank} (--max-lora-rank)"
        read.problems.insert(0, f"rank {max(too_large)} in {len(too_large)} layers; {most}")
    trained, copies = _whole(read, config, base)
    if not read.problems and not tensors and not trained:
        read.problems.append("it changes nothing: there is no tensor in it that acts")
    if read.problems:
        raise BadAdapter(*read.problems)
    notes = _notes(config, base, list(unused), copies)
    return Converted({**tensors, **trained}, unused, largest, groups_of(base, used), len(trained), read.count, notes)


def _read(files: Sequence[Path]) -> _Read:
    read = _Read()
    for file in files:
        try:
            found, others = read_tensors(file)
        except SpecError as error:
            raise BadAdapter(str(error).replace(f"{file.parent}/", "")) from error
        read.problems += others
        read.count += len(found)
        for key, tensor in found.items():
            _sort(read_key(key), tensor, read)
    return read


def _sort(key: AdapterKey, tensor: BitTensor, read: _Read) -> None:
    if key.why_not:
        read.problems.append(f"{key.key}: {key.why_not}, which is not served")
    elif key.half in ("a", "b"):
        if key.half in (halves := read.halves.setdefault(key.module, {})):
            read.problems.append(f"{key.key} and {halves[key.half][0]} are the same factor")
        halves[key.half] = (key.key, tensor)
    elif key.module in read.whole:
        read.problems.append(f"{key.key} and {read.whole[key.module][0].key} are the same tensor")
    else:
        read.whole[key.module] = (key, tensor)


def _factors(
    module: str, halves: Mapping[str, tuple[str, BitTensor]], config: PeftConfig, base: BaseModel
) -> tuple[list[str], dict[str, BitTensor] | None]:
    """Problems; and the tensors of one module by the engine's names, None: of a layer that is left out."""
    if len(halves) < 2:
        ((key, _),) = halves.values()
        return [f"{key}: its other half is missing"], None
    (key_a, a), (key_b, b) = halves["a"], halves["b"]
    if len(a.shape) != 2 or len(b.shape) != 2:
        return [f"{key_a}: {list(a.shape)} and {list(b.shape)} are factors of a convolution, which is not served"], None
    problems = [f"{key}: there is a number that is not finite" for key, half in halves.values() if not half.finite]
    rank = a.shape[0]
    if rank != b.shape[1] or not rank:
        return [*problems, f"{key_a}: {list(a.shape)} and {list(b.shape)} do not fit each other"], None
    if rank != config.rank_of(module):
        problems.append(f"{key_a}: rank {rank}, but adapter_config.json says {config.rank_of(module)}")
    try:
        targets = base.find(module)
    except SpecError as error:
        return [*problems, f"{key_a}: {error}"], None
    if targets is None:
        return problems, None
    shape = [targets[0].inputs, max(target.rows[1] for target in targets)]
    if [a.shape[1], b.shape[0]] != shape:
        problems.append(
            f"{key_a}: made for {a.shape[1]} inputs and {b.shape[0]} outputs; this model's {module} has {shape[0]} and "
            f"{shape[1]}"
        )
    scale = config.scale_of(module)
    largest = base.limits.largest
    if not problems and not (_fits(a, 1.0, largest) and _fits(b, scale, largest)):
        problems.append(f"{key_b}: times its scale {scale:g}, a number exceeds {largest:g}")
    return problems, {} if problems else _placed(targets, a, b, scale)


def _rank_of(halves: Mapping[str, tuple[str, BitTensor]]) -> int:
    shape = halves["a"][1].shape if "a" in halves else ()
    return shape[0] if len(shape) == 2 else 0


def _fits(b: BitTensor, scale: float, largest: float) -> bool:
    return abs(scale) <= largest and float(np.abs(b.widened()).max(initial=0.0)) * abs(scale) <= largest


def _placed(targets: Sequence[LoraTarget], a: BitTensor, b: BitTensor, scale: float) -> dict[str, BitTensor]:
    found = {}
    for target in targets:
        by_rows = target.reorder is None or target.reorder.axis == 0
        columns = a.words if by_rows else reordered(a.words, target.reorder, np.transpose, 1)
        outputs = (reordered(b.words, target.reorder, np.transpose, 0) if by_rows else b.words)[slice(*target.rows)]
        name = f"{target.linear}.{target.segment}"
        found[f"{name}.a"] = BitTensor(a.dtype, columns)
        found[f"{name}.b"] = BitTensor(b.dtype, outputs.T)
        found[f"{name}.scale"] = of_numbers([scale])
    return found


def _whole(read: _Read, config: PeftConfig, base: BaseModel) -> tuple[dict[str, BitTensor], list[str]]:
    """Tensors that were trained themselves, by the engine's names; and copies of the base's, which change nothing."""
    trained: dict[str, dict[int, BitTensor]] = {}
    copies = []
    for name, (key, tensor) in sorted(read.whole.items()):
        if not tensor.finite:
            read.problems.append(f"{key.key}: there is a number that is not finite")
        elif key.half == "base" or not (matches := base.find_trained(name)):
            problem = _not_a_copy(name, key, tensor, base)
            read.problems += problem
            copies += [] if problem else [key.key]
        elif not base.limits.projector:
            read.problems.append(f"{key.key}: a trained projector, for which slots have no room (--lora-projectors)")
        else:
            for match in matches:
                read.problems += _place_trained(match, key, tensor, trained)
    found = {}
    for target, parts in trained.items():
        problem, joined = _joined(target, parts, base)
        read.problems += problem
        if joined is not None:
            found[target] = joined
    named = {name for name, (key, _) in read.whole.items() if key.half == "whole"}
    read.problems += [
        f"adapter_config.json: modules_to_save has {one!r}, of which no tensor is in the files"
        for one in config.modules_to_save
        if not any(one in name for name in named)
    ]
    return found, copies


def _joined(target: str, parts: Mapping[int, BitTensor], base: BaseModel) -> tuple[list[str], BitTensor | None]:
    """A problem, or the parts of one parameter behind each other. Nothing at all: why none could be placed is known."""
    if not parts:
        return [], None
    kinds = {part.dtype for part in parts.values()}
    if len(kinds) > 1:
        return [f"{target}: its parts are stored as {' and '.join(sorted(kinds))}"], None
    whole = np.concatenate([parts[number].words for number in sorted(parts)])
    if whole.shape != (needed := base.trained_shape(target)):
        return [f"{target}: shape {list(whole.shape)}, but this model's projector has {list(needed)}"], None
    return [], BitTensor(kinds.pop(), whole)


def _not_a_copy(name: str, key: AdapterKey, tensor: BitTensor, base: BaseModel) -> list[str]:
    """PEFT saves the base's embedding and head beside an adapter of the head: such a copy must be one."""
    equal = base.equals_stored(name, tensor)
    if equal:
        return []
    if equal is None:
        return [f"{key.key}: neither a low-rank factor nor a tensor of this model's projector"]
    why = "an adapter may change no weight but the projector's (was it trained on another base, or with new tokens?)"
    return [f"{key.key}: differs from this model's own, and {why}"]


def _place_trained(
    match: Match, key: AdapterKey, tensor: BitTensor, trained: dict[str, dict[int, BitTensor]]
) -> list[str]:
    parts = trained.setdefault(match.target, {})
    if match.part in parts:
        return [f"{key.key}: another key is the same tensor ({match.target})"]
    words = tensor.words
    if match.rows is not None:
        if words.shape[:1] != match.rows[2:]:
            return [f"{key.key}: shape {list(words.shape)}; this model's has {match.rows[2]} rows"]
        words = words[slice(*match.rows[:2])]
    try:
        words = reordered(words, match.reorder, np.transpose)
    except ValueError:
        return [f"{key.key}: shape {list(tensor.shape)} does not fit this model's projector"]
    parts[match.part] = BitTensor(tensor.dtype, words)
    return []


def _notes(config: PeftConfig, base: BaseModel, unused: Sequence[str], copies: Sequence[str]) -> tuple[str, ...]:
    found = []
    if unused:
        found.append(
            f"{len(unused)} layers that this model does not run are in the files, as {unused[0]}: they do not act"
        )
    if copies:
        found.append(f"{', '.join(copies)}: equal to this model's own")
    if config.base_model is not None and config.base_model.rstrip("/").rpartition("/")[2] != base.name:
        found.append(f"it was trained on {config.base_model!r}, by its configuration; this model is {base.name}")
    return tuple(found)
