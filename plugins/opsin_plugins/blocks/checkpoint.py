"""Weight rules applied: every key is accounted for, every parameter filled once, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.spec import (
    Concat,
    Ignore,
    ModelFiles,
    Pattern,
    Prefix,
    Rename,
    Reorder,
    Rule,
    SpecError,
    Split,
    TensorInfo,
)
from opsin_plugins.spec.weight_rules import filled, name_pattern

FLOATS = {"F32", "F16", "BF16"}
SHOWN = 12  # names listed in an error; the count is always given


@dataclass(frozen=True)
class Target:
    """A place for weights: its shape, how it is filled, and the bytes it will take."""

    shape: tuple[int, ...]
    fill: Callable[[Sequence[Tensor]], None]


def targets(model: Model) -> dict[str, Target]:
    """Every parameter by the name that weight rules use; a linear's weight is one name whatever its parts."""
    found: dict[str, Target] = {}
    inside: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found[f"{path}.weight"] = Target((module.outputs, module.inputs), module.fill)
            inside.update(f"{path}.{name}" for name, _ in module.named_parameters() if name != "bias")
    for path, parameter in model.named_parameters():
        if path not in inside:
            found[path] = Target(tuple(parameter.shape), _rows_into(parameter.data))
    return found


def _rows_into(place: Tensor) -> Callable[[Sequence[Tensor]], None]:
    def fill(tensors: Sequence[Tensor]) -> None:
        at = 0
        for tensor in tensors:
            place[at : at + len(tensor)].copy_(tensor)
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
            tensors = [
                source.take(_read(shards, stack, files.tensors[source.key], source.key)) for source in plan[name]
            ]
            places[name].fill(tensors)
            done += sizes[name]
            progress(done, total)


def _read(shards: dict[Path, object], stack: ExitStack, info: TensorInfo, key: str) -> Tensor:
    if info.file not in shards:
        shards[info.file] = stack.enter_context(safe_open(info.file, framework="pt"))
    return shards[info.file].get_tensor(key)  # type: ignore[attr-defined]


def _numel(info: TensorInfo) -> int:
    return int(torch.Size(info.shape).numel())


def reordered(tensor: Tensor, reorder: Reorder | None) -> Tensor:
    """The tensor with one dimension's entries in the order that the model has them."""
    if reorder is None:
        return tensor
    at, shape = reorder.axis, tensor.shape
    if at is None:
        return tensor.permute(reorder.order)
    split = tensor.reshape(*shape[:at], *reorder.shape, *shape[at + 1 :])
    order = [*range(at), *(at + i for i in reorder.order)]
    return split.permute(*order, *range(len(order), split.dim())).reshape(shape)


@dataclass(frozen=True)
class Source:
    """A key of the checkpoint, which of its rows are taken, and how they are put into the model's order.

    rows: first, last + 1, and how many the tensor has; None: all.
    """

    key: str
    reorder: Reorder | None = None
    rows: tuple[int, int, int] | None = None

    def take(self, tensor: Tensor) -> Tensor:
        return reordered(tensor if self.rows is None else tensor[slice(*self.rows[:2])], self.reorder)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """What `take` makes of a tensor of this shape."""
        if self.rows is not None:
            start, stop, total = self.rows
            return (stop - start, *stored[1:]) if stored[0] == total else stored
        if self.reorder is not None and self.reorder.axis is None:
            return tuple(stored[i] for i in self.reorder.order)
        return stored


def assign(
    tensors: Mapping[str, TensorInfo], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[Source]]:
    """Which keys fill which parameter, in order. Pure: names and shapes only."""
    placed: dict[str, dict[int, Source]] = {}
    wanted: dict[str, int] = {}
    unmatched = []
    problems = []
    matcher = _Matcher(rules, shapes)
    for key in tensors:
        matches = matcher(key)
        if matches is None:
            unmatched.append(key)
            continue
        for match in matches:
            row = placed.setdefault(match.target, {})
            wanted[match.target] = match.parts
            if match.part in row:
                problems.append(f"{key} and {row[match.part].key} are the same weight")
            row[match.part] = Source(key, match.reorder, match.rows)
    missing = sorted(n for n in shapes if len(placed.get(n, ())) < wanted.get(n, 1))
    if unmatched or missing:
        raise SpecError(_listed("keys that nothing takes", unmatched) + _listed("weights that no key fills", missing))
    plan = {name: [row[i] for i in range(wanted[name])] for name, row in placed.items()}
    for name, sources in plan.items():
        problems += _mismatch(name, shapes[name], sources, tensors)
    if problems:
        raise SpecError("; ".join(problems[:SHOWN]))
    return plan


def _mismatch(
    name: str, shape: tuple[int, ...], sources: Sequence[Source], tensors: Mapping[str, TensorInfo]
) -> list[str]:
    infos = [tensors[s.key] for s in sources]
    problems = [f"{s.key} is stored as {i.dtype}" for s, i in zip(sources, infos, strict=True) if i.dtype not in FLOATS]
    found = [s.shape(i.shape) if i.shape else (1,) for s, i in zip(sources, infos, strict=True)]
    if any(f[1:] != shape[1:] for f in found) or sum(f[0] for f in found) != shape[0]:
        keys, stored = " + ".join(s.key for s in sources), [list(i.shape) for i in infos]
        problems.append(f"{keys}: shape {stored}, but {name} needs {list(shape)}")
    elif any(s.reorder is not None and not _fits(s.reorder, f) for s, f in zip(sources, found, strict=True)):
        problems.append(f"{name}: shape {found} cannot be reordered as the family says")
    return problems


def _fits(reorder: Reorder, shape: tuple[int, ...]) -> bool:
    return reorder.axis is None or math.prod(reorder.shape) == shape[reorder.axis]


def _listed(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {title}: {', '.join(sorted(names)[:SHOWN])}{more}. "


@dataclass(frozen=True)
class _Match:
    target: str
    part: int = 0
    parts: int = 1
    reorder: Reorder | None = None
    rows: tuple[int, int, int] | None = None


class _Matcher:
    """Finds the first rule that takes a key and whose targets exist in the model."""

    def __init__(self, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.prefixes = [r for r in rules if isinstance(r, Prefix)]
        self.shapes = shapes
        self.rules: list[tuple[Pattern, tuple[_Match, ...]]] = []
        for rule in rules:
            if isinstance(rule, Rename):
                self._add(rule.source, _Match(rule.target, reorder=rule.reorder))
            elif isinstance(rule, Concat):
                parts = len(rule.sources)
                reorders = rule.reorder or (None,) * parts
                for i, (source, reorder) in enumerate(zip(rule.sources, reorders, strict=True)):
                    self._add(source, _Match(rule.target, i, parts, reorder))
            elif isinstance(rule, Split):
                self._add(rule.source, *(_Match(target) for target in rule.targets))
            elif isinstance(rule, Ignore):
                self._add(rule.source)

    def _add(self, source: str, *matches: _Match) -> None:
        self.rules.append((name_pattern(source), matches))

    def __call__(self, key: str) -> list[_Match] | None:
        """Nothing in the list: the key is ignored. None: no rule takes it."""
        for prefix in self.prefixes:
            if key.startswith(prefix.old):
                key = prefix.new + key[len(prefix.old) :]
                break
        for pattern, matches in self.rules:
            found = pattern.fullmatch(key)
            if found is None:
                continue
            named = [replace(match, target=filled(match.target, found.groupdict())) for match in matches]
            if all(match.target in self.shapes for match in named):
                return self._with_rows(named) if len(named) > 1 else named
        return None

    def _with_rows(self, matches: Sequence[_Match]) -> list[_Match]:
        sizes = [self.shapes[match.target][0] for match in matches]
        ends = list(accumulate(sizes))
        return [replace(m, rows=(end - size, end, ends[-1])) for m, size, end in zip(matches, sizes, ends, strict=True)]
