"""The adapter in training: one flat float32 tensor, its gradient beside it, and views of both that linears are handed.

What serves is a copy, read from a checkpoint: a slot that changed while a piece waits for its backward pass would
change what that computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.trainable_projector import TrainableProjector
from opsin_plugins.blocks.trained_projectors import PREFIX
from opsin_plugins.blocks.trainee_lora import Dropout, TrainedLinear, TrainedSegment, TraineeLora
from opsin_plugins.spec import Linears
from opsin_server.engine.training.flat_layout import PROJECTOR, Place, lay_out
from opsin_server.engine.training.modules import TrainedModule
from opsin_server.ipc.training_settings import TrainingSettings


@dataclass(frozen=True)
class WholeProjector:
    """targets: the parameters that are trained, by the names that weight rules use."""

    module: nn.Module
    targets: Set[str]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By the module's own names."""
        return {name: p for name, p in self.module.named_parameters() if _rule_name(name) in self.targets}


def _rule_name(parameter: str) -> str:
    """Of the projector's parameter with this path in its module."""
    return PREFIX + parameter.replace(".stored.", ".")


class Trainee:
    """modules: as `trained_modules` sorts them. linears: all of the model's, by name. projector: the model's, where it
    is trained whole: a copy of these of its parameters is, from their own numbers on."""

    def __init__(
        self,
        modules: Sequence[TrainedModule],
        linears: Linears,
        settings: TrainingSettings,
        device: torch.device,
        projector: WholeProjector | None = None,
    ) -> None:
        self.modules, self.settings, self._shapes = modules, settings, linears
        self._of_linear = {name: list(found) for name, found in groupby(modules, key=lambda module: module.linear)}
        base = {} if projector is None else projector.parameters
        layout = lay_out(self._of_linear, {name: tuple(p.shape) for name, p in base.items()}, settings)
        self.groups = layout.groups
        self.flat, self.gradient = (torch.zeros(layout.size, device=device) for _ in range(2))
        self._leaves = {key: self._leaf(place) for key, place in layout.places.items()}
        self.linears = {name: self._linear(name, found) for name, found in self._of_linear.items()}
        self._whole = {name: self._leaves[PROJECTOR, name] for name in base}
        self._projector = None if projector is None else TrainableProjector(projector.module, self._whole)
        self._initialize(base)

    def lora(self, seed: int | None) -> TraineeLora:
        """seed: of this micro-batch's dropout; None: without any, as it will serve."""
        probability = self.settings.dropout
        dropout = Dropout(probability, seed) if probability and seed is not None else None
        return TraineeLora(self.linears, self._projector, dropout)

    def freeze(self) -> None:
        """It is only computed with."""
        self.gradient = torch.empty(0)
        for leaf in self._leaves.values():
            leaf.requires_grad_(False).grad = None

    @property
    def projector(self) -> dict[str, Tensor]:
        """What is trained whole, by the names that weight rules use: the flat tensor's own."""
        return {_rule_name(name): leaf.detach() for name, leaf in self._whole.items()}

    def factors_of(self, module: TrainedModule) -> tuple[Tensor, list[Tensor]]:
        """a [rank, inputs] and b [rank, outputs] of each segment: the flat tensor's own, without a scale."""
        trained, before = self.linears[module.linear], 0
        for other in self._of_linear[module.linear]:
            if other is module:
                mine = trained.segments[before : before + len(module.targets)]
                return trained.a.detach()[mine[0].lines], [segment.b.detach() for segment in mine]
            before += len(other.targets)
        raise KeyError(module.name)

    def _leaf(self, place: Place) -> Tensor:
        leaf = self.flat[place.first : place.stop].view(place.shape).requires_grad_()
        leaf.grad = self.gradient[place.first : place.stop].view(place.shape)  # added to in place
        return leaf

    def _linear(self, name: str, modules: Sequence[TrainedModule]) -> TrainedLinear:
        sizes, rank = self._shapes[name].segments, self.settings.rank
        columns = [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        segments: list[TrainedSegment] = []
        for number, module in enumerate(modules):
            lines = slice(number * rank, (number + 1) * rank)
            for target in module.targets:
                b = self._leaves[name, 1 + len(segments)]
                segments.append(TrainedSegment(columns[target.segment], lines, b, self.settings.scale))
        return TrainedLinear(self._leaves[name, 0], segments)

    @torch.no_grad()
    def _initialize(self, projector: Mapping[str, Tensor]) -> None:
        """A as PEFT draws it, in one order whatever the device; B is zeros; a projector is the model's."""
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
        for name, tensor in projector.items():
            self._whole[name].copy_(tensor)
