"""The model of a job under a name that was asked for: an adapter's version, or what an alias means."""

from __future__ import annotations

import asyncio
from pathlib import Path

from opsin_server.errors import NotFound, OpsinError, StorageFailed
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.metrics import EVALUATED, by_step
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.storage.records import Job, NewEvent


async def publish_as(options: JobOptions, job: Job, model: str, directory: Path, place: Workplace) -> list[NewEvent]:
    """What happened; what keeps the model from the name is said, and no reason for the job to fail. directory: of the
    adapter."""
    name, publisher = options.publish_as, place.publisher
    if name is None:
        return []
    promote, why = options.promote == "on_success", ""
    if options.promote == "if_better":
        promote, why = await asyncio.to_thread(_is_better, job.id, publisher.origin_of(name), place)
    try:
        if not publisher.is_alias(name):
            await publisher.publish(name, directory, job.id, promote=promote)
        elif promote:
            await publisher.set_alias(name, model)
    except StorageFailed:
        raise
    except OpsinError as error:
        return [NewEvent(f"The model could not be published as {name}: {error.message}", "error")]
    done = f"{name} means the new model now" if promote else f"{name} means what it did before"
    return [NewEvent(f"{done}{why}", data={"publish_as": name, "promoted": promote})]


def _is_better(job_id: str, other: str | None, place: Workplace) -> tuple[bool, str]:
    """Whether its loss on the validation file is lower than that of the job that it would replace, and why."""
    if other is None:
        return True, ": it meant none"
    try:
        theirs = _best_loss(other, place)
    except NotFound:
        theirs = None
    ours = _best_loss(job_id, place)
    if ours is None or theirs is None:
        return False, ": the validation loss of what it means is not known"
    return ours < theirs, f": validation loss {ours:.4f} against {theirs:.4f}"


def _best_loss(job_id: str, place: Workplace) -> float | None:
    numbers = by_step(place.state.jobs.events(place.tenant, job_id).items).values()
    return min((one[EVALUATED] for one in numbers if one.get(EVALUATED) is not None), default=None)
