"""Pictures by the projector that makes their visual tokens: the model's, or one that an adapter was trained with."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from opsin_plugins.blocks.lora import BASE, TRAINEE, Lora

Projector = TypeVar("Projector")


class ProjectorGroup(NamedTuple, Generic[Projector]):
    """members: pictures, by their number in the batch."""

    projector: Projector
    members: list[int]


def by_projector(lora: Lora, base: Projector) -> list[ProjectorGroup[Projector]]:
    """lora: a run each picture. base: the model's own projector."""
    slots = lora.slots.projectors
    assert lora.runs is not None
    groups: dict[int, ProjectorGroup[Projector]] = {}
    for number, run in enumerate(lora.runs):
        own = None if slots is None or run.slot in (BASE, TRAINEE) else slots[run.slot]
        projector: Projector = base if own is None else own  # type: ignore[assignment]
        groups.setdefault(id(projector), ProjectorGroup(projector, [])).members.append(number)
    return list(groups.values())
