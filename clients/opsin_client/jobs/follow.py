"""A job followed to its end: what happens, a bar, and the curve of its loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from opsin_client.plot import plot

ENDED = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0
PAGE = 100  # events


def new_events(client: openai.OpenAI, job_id: str, last: str | None) -> list[FineTuningJobEvent]:
    """Those behind the event `last`, the oldest first. (Servers list the newest first.)"""
    found: list[FineTuningJobEvent] = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=PAGE):
        if event.id == last:
            break
        found.append(event)
    return found[::-1]


def happenings(client: openai.OpenAI, job_id: str) -> Iterator[FineTuningJobEvent]:
    """All events, until the job has ended or was paused."""
    last: str | None = None
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)  # before its events: none that came with the end is missed
        for event in new_events(client, job_id, last):
            last = event.id
            yield event
        if job.status in (*ENDED, "paused"):
            return
        time.sleep(POLL_SECONDS)


def numbers_of(event: FineTuningJobEvent) -> dict[str, Any]:
    data = event.data if event.type == "metrics" else None
    return data if isinstance(data, dict) else {}


def follow(client: openai.OpenAI, job_id: str, console: Console) -> FineTuningJob:
    """Prints what happens, and the curve at the end."""
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)
        for event in happenings(client, job_id):
            numbers = numbers_of(event)
            if (loss := numbers.get("train_loss")) is not None:
                losses.append(float(loss))
                bar.update(
                    task,
                    completed=int(numbers["step"]),
                    total=int(numbers.get("total_steps", 0)) or None,
                    description=f"loss {losses[-1]:.4f}",
                )
            else:
                bar.console.print(event.message, highlight=False, soft_wrap=True, markup=False)
    for line in plot(losses):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return client.fine_tuning.jobs.retrieve(job_id)
