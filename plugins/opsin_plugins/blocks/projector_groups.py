"""Pictures by the projector that makes their visual tokens: the model's, or one that an adapter was trained with."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from opsin_plugins.blocks.lora import Lora

Projector = TypeVar("Projector")


class ProjectorGroup(NamedTuple, Generic[Projector]):
    """members: pictures, by their number in the batch."""

    projector: Projector
    members: list[int]


def by_projector(lora: Lora, pictures: int, base: Projector) -> list[ProjectorGroup[Projector]]:
    """lora: a run each picture. base: the model's own projector."""
    groups: dict[int, ProjectorGroup[Projector]] = {}
    for number in range(pictures):
        own = lora.projector_of(number)
        projector: Projector = base if own is None else own  # type: ignore[assignment]
        groups.setdefault(id(projector), ProjectorGroup(projector, [])).members.append(number)
    return list(groups.values())
