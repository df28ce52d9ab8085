"""Weight rules applied: every key is accounted for, every parameter filled once, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.spec import Concat, Ignore, ModelFiles, Pattern, Prefix, Rename, Rule, SpecError, TensorInfo

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
    sizes = {name: sum(_numel(files.tensors[key]) for key in keys) for name, keys in plan.items()}
    total, done = sum(sizes.values()), 0
    with ExitStack() as stack, torch.no_grad():
        shards: dict[Path, object] = {}
        # In the order of the files, so that pages are read once and forward.
        for name in sorted(plan, key=lambda n: (str(files.tensors[plan[n][0]].file), plan[n][0])):
            tensors = [_read(shards, stack, files.tensors[key], key) for key in plan[name]]
            places[name].fill(tensors)
            done += sizes[name]
            progress(done, total)


def _read(shards: dict[Path, object], stack: ExitStack, info: TensorInfo, key: str) -> Tensor:
    if info.file not in shards:
        shards[info.file] = stack.enter_context(safe_open(info.file, framework="pt"))
    return shards[info.file].get_tensor(key)  # type: ignore[attr-defined]


def _numel(info: TensorInfo) -> int:
    return int(torch.Size(info.shape).numel())


def assign(
    tensors: Mapping[str, TensorInfo], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """Which keys fill which parameter, in order. Pure: names and shapes only."""
    placed: dict[str, dict[int, str]] = {}
    wanted: dict[str, int] = {}
    unmatched = []
    problems = []
    matcher = _Matcher(rules, shapes)
    for key in tensors:
        match = matcher(key)
        if match is None:
            unmatched.append(key)
        elif match.target is not None:
            row = placed.setdefault(match.target, {})
            wanted[match.target] = match.parts
            if match.part in row:
                problems.append(f"{key} and {row[match.part]} are the same weight")
            row[match.part] = key
    missing = sorted(n for n in shapes if len(placed.get(n, ())) < wanted.get(n, 1))
    if unmatched or missing:
        raise SpecError(_listed("keys that nothing takes", unmatched) + _listed("weights that no key fills", missing))
    plan = {name: [row[i] for i in range(wanted[name])] for name, row in placed.items()}
    for name, keys in plan.items():
        problems += _mismatch(name, shapes[name], [tensors[k] for k in keys], keys)
    if problems:
        raise SpecError("; ".join(problems[:SHOWN]))
    return plan


def _mismatch(name: str, shape: tuple[int, ...], infos: Sequence[TensorInfo], keys: Sequence[str]) -> list[str]:
    problems = [f"{k} is stored as {i.dtype}" for k, i in zip(keys, infos, strict=True) if i.dtype not in FLOATS]
    rows = sum(i.shape[0] if i.shape else 1 for i in infos)
    if any(i.shape[1:] != shape[1:] for i in infos) or rows != shape[0]:
        problems.append(f"{' + '.join(keys)}: shape {[list(i.shape) for i in infos]}, but {name} needs {list(shape)}")
    return problems


def _listed(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {title}: {', '.join(sorted(names)[:SHOWN])}{more}. "


@dataclass(frozen=True)
class _Match:
    target: str | None  # None: ignored
    part: int = 0
    parts: int = 1


class _Matcher:
    """Finds the first rule that takes a key and whose target exists in the model."""

    def __init__(self, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.prefixes = [r for r in rules if isinstance(r, Prefix)]
        self.shapes = shapes
        self.rules: list[tuple[Pattern, str | None, int, int]] = []
        for rule in rules:
            if isinstance(rule, Rename):
                self.rules.append((_pattern(rule.source), rule.target, 0, 1))
            elif isinstance(rule, Concat):
                parts = len(rule.sources)
                self.rules += [(_pattern(s), rule.target, i, parts) for i, s in enumerate(rule.sources)]
            elif isinstance(rule, Ignore):
                self.rules.append((_pattern(rule.source), None, 0, 1))

    def __call__(self, key: str) -> _Match | None:
        for prefix in self.prefixes:
            if key.startswith(prefix.old):
                key = prefix.new + key[len(prefix.old) :]
                break
        for pattern, target, part, parts in self.rules:
            found = pattern.fullmatch(key)
            if found is None:
                continue
            if target is None:
                return _Match(None)
            name = target
            for group, value in found.groupdict().items():
                name = name.replace("{" + group + "}", value)
            if name in self.shapes:
                return _Match(name, part, parts)
        return None


def _pattern(source: str) -> Pattern:
    """`{i}` is a layer number, `{rest}` any tail."""
    escaped = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)", 1).replace(r"\{rest\}", r"(?P<rest>.+)", 1)
    return re.compile(escaped)
