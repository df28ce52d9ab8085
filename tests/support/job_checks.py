"""What must be true of a job at every moment, and of one that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from opsin_server.storage.job_records import ENDED, MOVES
from opsin_server.storage.records import Job, JobEvent
from opsin_server.storage.state import State
from opsin_server.storage.tables import WebhookDeliveryRow
from support.fake_training import loss_of
from support.stored import TENANT

STEPS, EPOCH = 6, 3  # of each job
END = {
    "succeeded": "The job has successfully completed",
    "failed": "The job failed: ",
    "cancelled": "The job was cancelled",
}
KINDS = tuple(f"fine_tuning.job.{status}" for status in END)


@dataclass
class Known:
    """What is known of a job. statuses: each that it had, in order. events: all that were read, with their numbers."""

    id: str
    request: str
    key: str | None
    at: float
    validates: bool  # whether it has a validation file
    statuses: list[str] = field(default_factory=lambda: ["validating_files"])
    events: list[tuple[int, JobEvent]] = field(default_factory=list)


def check_statuses(known: Known, job: Job) -> None:
    assert job.status == known.statuses[-1]
    for before, after in zip(known.statuses, known.statuses[1:], strict=False):
        assert after in MOVES[before], known.statuses  # type: ignore[index]
    assert (job.finished is not None) == (job.status in ENDED)


def read_events(known: Known, state: State, *, all_again: bool) -> None:
    """all_again: those that were read before are what they were."""
    if all_again:
        found = state.jobs.events_since(TENANT, known.id, 0)
        assert found[: len(known.events)] == known.events
    else:
        found = known.events + state.jobs.events_since(TENANT, known.id, len(known.events))
    known.events = found


def check_events(known: Known) -> None:
    """Numbered without a gap; each step is told once, in order, and what is measured after it comes after it."""
    assert [number for number, _ in known.events] == list(range(1, len(known.events) + 1))
    assert len({event.id for _, event in known.events}) == len(known.events)
    trained: list[int] = []
    evaluated: list[int] = []
    for _, event in known.events:
        if event.kind != "metrics":
            continue
        assert event.data is not None
        step = event.data["step"]
        if "train_loss" in event.data:
            assert event.data["train_loss"] == loss_of(step)
            trained.append(step)
        else:
            assert step in trained
            evaluated.append(step)
    assert trained == list(range(1, len(trained) + 1)), said(known)
    assert evaluated == [step for step in (EPOCH, STEPS) if step in evaluated], said(known)
    messages = said(known)
    assert messages[0] == f"Created fine-tuning job: {known.id}"
    if trained:
        before = messages[: next(i for i, text in enumerate(messages) if text.startswith("Step "))]
        assert [text for text in before if text.startswith(("Files validated", "Fine-tuning job started"))][-2:] == [
            "Files validated, moving job to queued state",
            "Fine-tuning job started",
        ]


def check_ends(known: Known, state: State) -> None:
    """An end is told once: as an event, behind which there is nothing of the training, and to webhooks."""
    status = known.statuses[-1]
    ends = [text for text in said(known) if text.startswith(tuple(END.values()))]
    if status not in ENDED:
        assert ends == []
    else:
        assert len(ends) == 1
        assert ends[0].startswith(END[status])
        after = said(known)[said(known).index(ends[0]) + 1 :]
        assert [text for text in after if not text.startswith("Checkpoint created")] == []
    with state.database.read() as session:
        found = session.scalars(select(WebhookDeliveryRow)).all()
    assert [row.type for row in found if row.data["id"] == known.id] == [f"fine_tuning.job.{status}"] * len(ends)


def check_success(known: Known, job: Job, state: State, served: dict[str, list[str]]) -> None:
    """All steps are told, the checkpoints at the ends of epochs are there, and the model is what was made last."""
    numbers = [event.data for _, event in known.events if event.kind == "metrics" and event.data is not None]
    assert [one["step"] for one in numbers if "train_loss" in one] == list(range(1, STEPS + 1)), said(known)
    assert [one["step"] for one in numbers if "full_valid_loss" in one] == [EPOCH, STEPS] * known.validates, said(known)
    checkpoints = state.jobs.checkpoints(TENANT, known.id).items
    gone = [
        step for step in (STEPS, EPOCH) if any(f"checkpoint at step {step} cannot be served" in t for t in said(known))
    ]
    assert [one.step for one in checkpoints] == [step for step in (STEPS, EPOCH) if step not in gone], said(known)
    assert [served[one.model][-1] for one in checkpoints] == [f"{known.id} {one.step}" for one in checkpoints]
    assert job.model is not None
    assert served[job.model][-1] == f"{known.id} {STEPS}"
    assert job.result_file is not None
    assert state.stored_files.get(TENANT, job.result_file).purpose == "fine-tune-results"


def said(known: Known) -> Sequence[str]:
    return [event.message for _, event in known.events]
