"""A forward pass as a sequence of pieces, so that whoever runs it can stop between two of them.

The composition of a module's stages is its `forward`: the same functions in the same order. Tensors pass between pieces
by name, so that a trainer can detach them and walk the pieces backwards, each with a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from opsin_plugins.spec import SpecError


@dataclass(frozen=True)
class Stage:
    """run is called with the tensors named in `takes`, in this order, and returns those named in `gives`. A name may be
    given anew (the hidden states "x" of every layer)."""

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[..., tuple[Tensor, ...]]


def run_stages(stages: Iterable[Stage], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by name, the given and the made. Raises SpecError for a stage that takes what nothing has given, or
    does not give what it says."""
    found = dict(tensors)
    for stage in stages:
        if missing := [name for name in stage.takes if name not in found]:
            raise SpecError(f"stage {stage.name!r} takes {missing[0]!r}, which no stage before it gives")
        made = stage.run(*(found[name] for name in stage.takes))
        if not isinstance(made, tuple) or len(made) != len(stage.gives):
            raise SpecError(f"stage {stage.name!r} must return a tuple of {len(stage.gives)}: {', '.join(stage.gives)}")
        found.update(zip(stage.gives, made, strict=True))
    return found
