"""Where the numbers that are trained lie in one flat tensor: those that have one learning rate together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opsin_server.engine.training.modules import PARTS, TrainedModule
from opsin_server.ipc.training_settings import TrainingSettings

Key = tuple[str, int | str]
"""A linear's name and 0 for its a, or the number of one of its b from 1 on; or PROJECTOR and a parameter's name."""
PROJECTOR = ""


@dataclass(frozen=True)
class RateGroup:
    """rate: what the learning rate is multiplied with."""

    name: str
    first: int
    stop: int
    rate: float


@dataclass(frozen=True)
class Place:
    first: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.first + math.prod(self.shape)


@dataclass(frozen=True)
class FlatLayout:
    places: Mapping[Key, Place]
    groups: Sequence[RateGroup]

    @property
    def size(self) -> int:
        return self.groups[-1].stop if self.groups else 0


def lay_out(
    linears: Mapping[str, Sequence[TrainedModule]],
    projector: Mapping[str, tuple[int, ...]],
    settings: TrainingSettings,
) -> FlatLayout:
    """linears: what is trained of each. projector: shapes of parameters that are trained whole."""
    rates = {"language": 1.0, "vision": settings.vision_rate, "projector": settings.projector_rate}
    places: dict[Key, Place] = {}
    groups: list[RateGroup] = []
    for part in PARTS:
        own = {name: modules for name, modules in linears.items() if modules[0].part == part}
        halves = {"a": _a(own, settings.rank), "b": _b(own, settings.rank)}
        if part == "projector":
            halves["whole"] = {(PROJECTOR, name): shape for name, shape in projector.items()}
        for half, shapes in halves.items():
            first = at = groups[-1].stop if groups else 0
            for key, shape in shapes.items():
                places[key] = Place(at, shape)
                at = places[key].stop
            if at > first:
                faster = settings.lora_plus_ratio if half == "b" else 1.0
                groups.append(RateGroup(f"{part}.{half}", first, at, rates[part] * faster))
    return FlatLayout(places, groups)


def _a(linears: Mapping[str, Sequence[TrainedModule]], rank: int) -> dict[Key, tuple[int, ...]]:
    return {(name, 0): (len(modules) * rank, modules[0].inputs) for name, modules in linears.items()}


def _b(linears: Mapping[str, Sequence[TrainedModule]], rank: int) -> dict[Key, tuple[int, ...]]:
    return {
        (name, number): (rank, size)
        for name, modules in linears.items()
        for number, size in enumerate((size for module in modules for size in module.outputs), 1)
    }
