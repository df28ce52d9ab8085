"""Weight rules matched with names and shapes: which keys of a checkpoint fill which weight. No tensor is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from opsin_plugins.spec import (
    Concat,
    Ignore,
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
class Source:
    """A key of the checkpoint, which of its rows are taken, and how they are put into the model's order.

    rows: first, last + 1, and how many the tensor has; None: all.
    """

    key: str
    reorder: Reorder | None = None
    rows: tuple[int, int, int] | None = None

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a tensor of this shape."""
        if self.rows is not None:
            start, stop, total = self.rows
            return (stop - start, *stored[1:]) if stored[0] == total else stored
        if self.reorder is not None and self.reorder.axis is None:
            return tuple(stored[i] for i in self.reorder.order)
        return stored


def reordered(
    array: Any, reorder: Reorder | None, permute: Callable[[Any, tuple[int, ...]], Any], axis: int | None = None
) -> Any:
    """An array, or a tensor, with one dimension's entries in the order that the model has them. permute: numpy's
    transpose or torch's permute. axis: the dimension, where it is another than the rule's: a low-rank factor has one of
    the two that a weight has."""
    if reorder is None:
        return array
    if reorder.axis is None:
        return permute(array, reorder.order)
    axis = reorder.axis if axis is None else axis
    shape = tuple(array.shape)
    split = array.reshape(*shape[:axis], *reorder.shape, *shape[axis + 1 :])
    order = [*range(axis), *(axis + i for i in reorder.order)]
    return permute(split, (*order, *range(len(order), len(split.shape)))).reshape(shape)


def assign(
    tensors: Mapping[str, TensorInfo], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[Source]]:
    """Which keys fill which parameter, in order. Pure: names and shapes only."""
    placed: dict[str, dict[int, Source]] = {}
    wanted: dict[str, int] = {}
    unmatched = []
    problems = []
    matcher = WeightMatcher(rules, shapes)
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
    problems = [
        f"{s.key} is stored as {i.dtype}"
        for s, i in zip(sources, infos, strict=True)
        if i.dtype not in FLOATS and i.packing is None
    ]
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
class Match:
    target: str
    part: int = 0
    parts: int = 1
    reorder: Reorder | None = None
    rows: tuple[int, int, int] | None = None


class WeightMatcher:
    """Finds the first rule that takes a key and whose targets exist in the model."""

    def __init__(self, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.prefixes = [r for r in rules if isinstance(r, Prefix)]
        self.shapes = shapes
        self.rules: list[tuple[Pattern, tuple[Match, ...]]] = []
        for rule in rules:
            if isinstance(rule, Rename):
                self._add(rule.source, Match(rule.target, reorder=rule.reorder))
            elif isinstance(rule, Concat):
                parts = len(rule.sources)
                reorders = rule.reorder or (None,) * parts
                for i, (source, reorder) in enumerate(zip(rule.sources, reorders, strict=True)):
                    self._add(source, Match(rule.target, i, parts, reorder))
            elif isinstance(rule, Split):
                self._add(rule.source, *(Match(target) for target in rule.targets))
            elif isinstance(rule, Ignore):
                self._add(rule.source)

    def _add(self, source: str, *matches: Match) -> None:
        self.rules.append((name_pattern(source), matches))

    def canonical(self, key: str) -> str:
        """The key in the dialect that the rules are written in."""
        for prefix in self.prefixes:
            if key.startswith(prefix.old):
                return prefix.new + key[len(prefix.old) :]
        return key

    def would_fill(self, key: str) -> str | None:
        """The first name that a rule gives the key, whether or not the model has such a weight."""
        key = self.canonical(key)
        for pattern, matches in self.rules:
            if matches and (found := pattern.fullmatch(key)) is not None:
                return filled(matches[0].target, found.groupdict())
        return None

    def __call__(self, key: str) -> list[Match] | None:
        """Nothing in the list: the key is ignored. None: no rule takes it."""
        key = self.canonical(key)
        for pattern, matches in self.rules:
            found = pattern.fullmatch(key)
            if found is None:
                continue
            named = [replace(match, target=filled(match.target, found.groupdict())) for match in matches]
            if all(match.target in self.shapes for match in named):
                return self._with_rows(named) if len(named) > 1 else named
        return None

    def _with_rows(self, matches: Sequence[Match]) -> list[Match]:
        sizes = [self.shapes[match.target][0] for match in matches]
        ends = list(accumulate(sizes))
        return [replace(m, rows=(end - size, end, ends[-1])) for m, size, end in zip(matches, sizes, ends, strict=True)]
