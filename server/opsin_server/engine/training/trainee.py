"""The adapter in training: one flat float32 tensor, its gradient beside it, and views of both that linears are handed.

Slots hold copies that are published at a step's end: a slot that changed while a piece waits for its backward pass
would change what that computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from opsin_plugins.blocks.adapter_slots import AdapterFactors, AdapterWeights, Factors
from opsin_plugins.blocks.trainee_lora import Dropout, TrainedLinear, TrainedSegment, TraineeLora
from opsin_plugins.spec import Linears
from opsin_server.engine.training.modules import PARTS, TrainedModule
from opsin_server.ipc.training_settings import TrainingSettings


@dataclass(frozen=True)
class RateGroup:
    """Numbers of the flat tensor that have a learning rate of their own. rate: a factor of the settings'."""

    name: str
    first: int
    stop: int
    rate: float


@dataclass(frozen=True)
class _Place:
    """A leaf's numbers in the flat tensor."""

    first: int
    shape: tuple[int, int]

    @property
    def stop(self) -> int:
        return self.first + self.shape[0] * self.shape[1]


class Trainee:
    """modules: as `trained_modules` sorts them. linears: all of the model's, by name."""

    def __init__(
        self, modules: Sequence[TrainedModule], linears: Linears, settings: TrainingSettings, device: torch.device
    ) -> None:
        self.modules, self.settings, self._shapes = modules, settings, linears
        self._of_linear = {name: list(found) for name, found in groupby(modules, key=lambda module: module.linear)}
        places, self.groups = self._placed()
        size = max((place.stop for place in places.values()), default=0)
        self.flat, self.gradient = (torch.zeros(size, device=device) for _ in range(2))
        self._leaves = {key: self._leaf(place) for key, place in places.items()}
        self.linears = {name: self._linear(name, found) for name, found in self._of_linear.items()}
        self._initialize()

    def lora(self, seed: int | None) -> TraineeLora:
        """seed: of this micro-batch's dropout; None: without any, as it will serve."""
        probability = self.settings.dropout
        return TraineeLora(self.linears, None, Dropout(probability, seed) if probability and seed is not None else None)

    def weights(self, dtype: torch.dtype) -> AdapterWeights:
        """Copies, as a slot takes them."""
        found: dict[str, list[Factors | None]] = {}
        for name, trained in self.linears.items():
            factors: list[Factors | None] = [None] * len(self._shapes[name].segments)
            numbers = [target.segment for module in self._of_linear[name] for target in module.targets]
            for number, segment in zip(numbers, trained.segments, strict=True):
                a, b = trained.a.detach()[segment.lines], segment.b.detach() * segment.scale
                factors[number] = Factors(a.to(dtype, copy=True), b.to(dtype))
            found[name] = factors
        return AdapterWeights(found)

    def load(self, factors: AdapterFactors) -> None:
        """Takes the factors of an adapter of the same modules and rank, whose b holds its scale."""
        with torch.no_grad():
            for name, trained in self.linears.items():
                numbers = [target.segment for module in self._of_linear[name] for target in module.targets]
                for number, segment in zip(numbers, trained.segments, strict=True):
                    given = factors[name][number]
                    assert given is not None
                    trained.a[segment.lines].copy_(given.a)
                    segment.b.copy_(given.b / segment.scale)

    def factors_of(self, module: TrainedModule) -> tuple[Tensor, list[Tensor]]:
        """a [rank, inputs] and b [rank, outputs] of each segment: the flat tensor's own, without a scale."""
        trained, before = self.linears[module.linear], 0
        for other in self._of_linear[module.linear]:
            if other is module:
                mine = trained.segments[before : before + len(module.targets)]
                return trained.a.detach()[mine[0].lines], [segment.b.detach() for segment in mine]
            before += len(other.targets)
        raise KeyError(module.name)

    def _placed(self) -> tuple[dict[tuple[str, int], _Place], list[RateGroup]]:
        """Leaves by linear and number, 0 for a, then a b for each segment: those with one learning rate together."""
        settings, rank = self.settings, self.settings.rank
        rates = {"language": 1.0, "vision": settings.vision_rate, "projector": settings.projector_rate}
        places: dict[tuple[str, int], _Place] = {}
        groups, at = [], 0
        for part in PARTS:
            own = [(name, found) for name, found in self._of_linear.items() if found[0].part == part]
            for half, ratio in (("a", 1.0), ("b", settings.lora_plus_ratio)):
                first = at
                for name, found in own:
                    shapes = [(len(found) * rank, found[0].inputs)]
                    if half == "b":
                        shapes = [(rank, n) for module in found for n in module.outputs]
                    for number, shape in enumerate(shapes, int(half == "b")):
                        places[name, number] = place = _Place(at, shape)
                        at = place.stop
                if at > first:
                    groups.append(RateGroup(f"{part}.{half}", first, at, rates[part] * ratio))
        return places, groups

    def _leaf(self, place: _Place) -> Tensor:
        leaf = self.flat[place.first : place.stop].view(place.shape).requires_grad_()
        leaf.grad = self.gradient[place.first : place.stop].view(place.shape)  # added to in place
        return leaf

    def _linear(self, name: str, modules: Sequence[TrainedModule]) -> TrainedLinear:
        columns, at = [], 0
        for size in self._shapes[name].segments:
            columns.append(slice(at, at + size))
            at += size
        rank = self.settings.rank
        segments: list[TrainedSegment] = []
        for number, module in enumerate(modules):
            for target in module.targets:
                lines = slice(number * rank, (number + 1) * rank)
                leaf = self._leaves[name, 1 + len(segments)]
                segments.append(TrainedSegment(columns[target.segment], lines, leaf, self.settings.scale))
        return TrainedLinear(self._leaves[name, 0], segments)

    def _initialize(self) -> None:
        """A as PEFT draws it, in one order whatever the device; B is zeros."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        for module in self.modules:
            a, _ = self.factors_of(module)
            drawn = torch.empty(a.shape)
            if self.settings.initialization == "gaussian":
                drawn.normal_(0, 1 / self.settings.rank, generator=generator)
            else:
                bound = 1 / math.sqrt(module.inputs)  # kaiming_uniform with a = √5
                drawn.uniform_(-bound, bound, generator=generator)
            a.copy_(drawn)
