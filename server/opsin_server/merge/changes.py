"""Which published tensors an adapter changes, and what becomes of each.

The adapter is in the model's order (`adapters.convert`), the tensors are in that of their files: each is brought into
the model's order, changed there, and brought back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opsin_plugins.blocks.checkpoint import reordered
from opsin_plugins.loading.weight_matching import Source
from opsin_plugins.spec import Linears, TensorInfo
from opsin_server.adapters.convert import Converted, UnusedFactors
from opsin_server.adapters.module_names import published_names
from opsin_server.adapters.problems import BadAdapter
from opsin_server.adapters.tensor_file import BitTensor

BLOCK = 2**24  # numbers of a tensor that are in memory as float32
Plan = Mapping[str, Sequence[Source]]
"""Of `weight_matching.assign`: the published tensors that fill each weight of the model."""


@dataclass(frozen=True)
class LowRank:
    """scale · B · A, to be added to rows (first, last + 1). a [rank, inputs], b [rows, rank]."""

    rows: tuple[int, int]
    a: BitTensor
    b: BitTensor
    scale: float


@dataclass(frozen=True)
class Change:
    """Of the rows of a published tensor that one weight of the model takes, in the order of that weight. trained: what
    stands there instead; added: to what stands there."""

    source: Source
    trained: BitTensor | None = None
    added: tuple[LowRank, ...] = ()


Changes = Mapping[str, Sequence[Change]]
"""By the published tensor's name."""


def changes_of(converted: Converted, plan: Plan, linears: Linears, tensors: Mapping[str, TensorInfo]) -> Changes:
    """Raises BadAdapter for factors of a layer that does not run which do not fit its published weight."""
    assert not (lost := {_target(name) for name in converted.tensors} - plan.keys()), lost
    found: dict[str, list[Change]] = {}
    for target, sources in plan.items():
        added = _added(target.removesuffix(".weight"), converted.tensors, linears)
        trained = converted.tensors.get(target)
        first = 0
        for source in sources:
            last = first + (source.shape(tensors[source.key].shape) or (1,))[0]
            part = None if trained is None else trained[first:last]
            within = tuple(_within(added, first, last))
            if within or part is not None:
                found.setdefault(source.key, []).append(Change(source, part, within))
            first = last
    return found | _of_unused(converted.unused, tensors)


def _target(name: str) -> str:
    """The weight of the model that a tensor of the engine's form is for."""
    return f"{name.rsplit('.', 2)[0]}.weight" if name.endswith((".a", ".b", ".scale")) else name


def _within(added: Sequence[LowRank], first: int, last: int) -> Iterator[LowRank]:
    """What is added to some rows of a weight, counted from the first of them."""
    for one in added:
        begin, end = max(first, one.rows[0]), min(last, one.rows[1])
        if begin < end:
            b = one.b[begin - one.rows[0] : end - one.rows[0]]
            yield LowRank((begin - first, end - first), one.a, b, one.scale)


def _added(linear: str, tensors: Mapping[str, BitTensor], linears: Linears) -> list[LowRank]:
    """By segments of a linear of the model."""
    if linear not in linears:
        return []
    ends = [0, *accumulate(linears[linear].segments)]
    found = []
    for segment, rows in enumerate(pairwise(ends)):
        name = f"{linear}.{segment}"
        if f"{name}.a" in tensors:
            b = tensors[f"{name}.b"]
            scale = float(tensors[f"{name}.scale"].widened()[0])
            found.append(LowRank(rows, tensors[f"{name}.a"], BitTensor(b.dtype, b.words.T), scale))
    return found


def _of_unused(unused: Mapping[str, UnusedFactors], tensors: Mapping[str, TensorInfo]) -> dict[str, list[Change]]:
    """Layers that are published and do not run: other programs may run them, and merge them as well."""
    found = {}
    for module, factors in unused.items():
        names = (key for name in published_names(module) for key in (f"{name}.weight", name))
        if (key := next((name for name in names if name in tensors), None)) is None:
            continue
        shape = [factors.b.shape[0], factors.a.shape[1]]
        if shape != list(tensors[key].shape):
            raise BadAdapter(f"{module}: made for a weight of shape {shape}; {key} has {list(tensors[key].shape)}")
        low_rank = LowRank((0, shape[0]), factors.a, factors.b, factors.scale)
        found[key] = [Change(Source(key), added=(low_rank,))]
    return found


def merged(stored: Tensor, changes: Sequence[Change]) -> Tensor:
    """In float32, each number rounded once to the type that is stored. Rows in their published order are changed some
    at a time: a large vocabulary's head in float32 would be the largest thing in memory by far."""
    made = stored.clone()
    for change in changes:
        rows = made if change.source.rows is None else made[slice(*change.source.rows[:2])]
        if change.source.reorder is not None or rows.numel() <= BLOCK:
            _change(rows, change)
            continue
        step = max(1, BLOCK * len(rows) // rows.numel())
        for first in range(0, len(rows), step):
            last = min(first + step, len(rows))
            trained = None if change.trained is None else change.trained[first:last]
            _change(rows[first:last], Change(change.source, trained, tuple(_within(change.added, first, last))))
    return made


def _change(rows: Tensor, change: Change) -> None:
    """In place."""
    reorder, trained = change.source.reorder, change.trained
    own = reordered(rows.to(torch.float32, copy=True), reorder) if trained is None else _numbers(trained)
    for one in change.added:
        own[slice(*one.rows)].addmm_(_numbers(one.b), _numbers(one.a), alpha=one.scale)
    rows.copy_(reordered(own, None if reorder is None else reorder.inverse).reshape(rows.shape))


def _numbers(tensor: BitTensor) -> Tensor:
    """In float32."""
    wide: NDArray[np.float32] = tensor.widened().astype(np.float32)
    return torch.from_numpy(wide)
