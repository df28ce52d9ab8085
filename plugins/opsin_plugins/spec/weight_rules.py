"""Weight rules: which tensor of a checkpoint fills which weight of the model.

A name is a pattern: `{i}` stands for a layer number and `{rest}` for any tail; the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opsin_plugins.spec.base_types import Pattern


@dataclass(frozen=True)
class Prefix:
    """A published dialect: a key that starts with `old` is read as if it started with `new`. The first match counts."""

    old: str
    new: str


@dataclass(frozen=True)
class Reorder:
    """A published tensor whose rows or columns stand in another order: dimension `axis` is read as `shape`, its parts
    are put into `order`, and it is flat again. axis None: the tensor's own dimensions are put into `order`."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    axis: int | None = 0

    @property
    def inverse(self) -> Reorder:
        """What leads back to the published order."""
        back = tuple(self.order.index(i) for i in range(len(self.order)))
        shape = self.shape if self.axis is None else tuple(self.shape[i] for i in self.order)
        return Reorder(shape, back, self.axis)


@dataclass(frozen=True)
class Rename:
    source: str
    target: str
    reorder: Reorder | None = None


@dataclass(frozen=True)
class Concat:
    """Several tensors stacked by rows into one (q, k, v into one fused linear). reorder: one a source, or none at
    all."""

    sources: tuple[str, ...]
    target: str
    reorder: tuple[Reorder | None, ...] = ()


@dataclass(frozen=True)
class Split:
    """One tensor cut by rows into several (the opposite of Concat): each target takes as many rows as it has."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Ignore:
    """A key that the model has no use for, and why (a tied head saved twice, a buffer, a layer past the feature)."""

    source: str
    why: str


Rule = Prefix | Rename | Concat | Split | Ignore


@dataclass(frozen=True)
class PublishedNames:
    """One form in which a model is published: rules as of `Architecture.weights`, groups as of
    `Architecture.lora_groups`."""

    rules: Sequence[Rule]
    groups: Mapping[str, Pattern]


def name_pattern(source: str) -> re.Pattern[str]:
    """What a rule's name matches; its groups are `i` and `rest`."""
    return re.compile(re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)", 1).replace(r"\{rest\}", r"(?P<rest>.+)", 1))


def filled(name: str, groups: Mapping[str, str]) -> str:
    """A rule's other name, of what was matched."""
    for group, value in groups.items():
        name = name.replace("{" + group + "}", value)
    return name
