"""A forward pass as a sequence of pieces, so that whoever runs it can stop between two of them.

The composition of a module's stages is its `forward`: the same functions in the same order. Tensors pass between pieces
by name, so that a trainer can detach them and walk the pieces backwards, each with a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """run is called with the tensors named in `takes`, in this order, and returns those named in `gives`. A name may be
    given anew (the hidden states "x" of every layer)."""

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[..., tuple[Tensor, ...]]


def run_stages(stages: Iterable[Stage], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by name, the given and the made. Raises KeyError when a stage takes what nothing has given."""
    found = dict(tensors)
    for stage in stages:
        found.update(zip(stage.gives, stage.run(*(found[name] for name in stage.takes)), strict=True))
    return found
