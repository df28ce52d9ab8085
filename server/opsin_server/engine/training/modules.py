"""What is trained: published linears by name, and where each of them lies in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opsin_plugins.loading.lora_targets import LoraTarget, LoraTargets
from opsin_plugins.spec import SpecError

PARTS = ("language", "projector", "vision")  # that have learning rates of their own
TRAINED_WITH = {"vision": "vision", "projector": "projector"}  # by the first word of a linear's path; else the language


@dataclass(frozen=True)
class TrainedModule:
    """A published linear that gets low-rank factors. targets: segments of one linear of the model, which follow each
    other."""

    name: str
    targets: tuple[LoraTarget, ...]

    @property
    def linear(self) -> str:
        return self.targets[0].linear

    @property
    def inputs(self) -> int:
        return self.targets[0].inputs

    @property
    def outputs(self) -> list[int]:
        """Of each segment."""
        return [last - first for first, last in (target.rows for target in self.targets)]

    @property
    def part(self) -> str:
        return TRAINED_WITH.get(self.linear.partition(".")[0], "language")


def trained_modules(names: Sequence[str], targets: LoraTargets) -> list[TrainedModule]:
    """In the order of the model's linears and their segments. Raises SpecError for a name that is no linear of the
    model, or that an adapter of it could not change."""
    found = []
    taken: dict[tuple[str, int], str] = {}
    for name in names:
        places = tuple(targets.find(name))
        if len({place.linear for place in places}) > 1:
            raise SpecError(f"{name}: published as one, but several linears of this model; it cannot be trained")
        for place in places:
            if (other := taken.setdefault((place.linear, place.segment), name)) != name:
                raise SpecError(f"{name} and {other} are the same layer")
        found.append(TrainedModule(name, places))
    return sorted(found, key=lambda module: (module.linear, module.targets[0].segment))
