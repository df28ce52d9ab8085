"""A batch followed to its end: a bar of its lines."""

from __future__ import annotations

import time

import openai
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ENDED = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 1.0


def follow(client: openai.OpenAI, batch_id: str, console: Console) -> Batch:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)
        while True:
            batch = client.batches.retrieve(batch_id)
            counts = batch.request_counts
            if counts is not None:
                ran = counts.completed + counts.failed
                said = f"{batch.status}, {counts.failed} failed" if counts.failed else batch.status
                bar.update(task, completed=ran, total=counts.total or None, description=said)
            if batch.status in ENDED:
                return batch
            time.sleep(POLL_SECONDS)
