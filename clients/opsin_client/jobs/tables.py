"""What `opsin jobs` prints of jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable

from openai.types.fine_tuning import FineTuningJob
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from opsin_client.say import print_line
from opsin_client.table import show_table

NONE = "-"


def show_jobs(jobs: Iterable[FineTuningJob]) -> None:
    head = ("job", "status", "model", "made", "fine-tuned model")
    rows = [(job.id, job.status, job.model, _when(job.created_at), job.fine_tuned_model or NONE) for job in jobs]
    show_table(head, rows)


def show_job(job: FineTuningJob, checkpoints: Iterable[FineTuningJobCheckpoint]) -> None:
    given = job.hyperparameters
    rows = [
        ("status", job.status if job.error is None or not job.error.message else f"{job.status}: {job.error.message}"),
        ("model", job.model),
        ("trained on", job.training_file),
        ("validated on", job.validation_file or NONE),
        ("epochs, batch", f"{given.n_epochs}, {given.batch_size}"),
        ("learning rate", f"x {given.learning_rate_multiplier}"),
        ("made", _when(job.created_at)),
        ("ends", NONE if job.estimated_finish is None else f"about {_when(job.estimated_finish)}"),
        ("ended", NONE if job.finished_at is None else _when(job.finished_at)),
        ("tokens", NONE if job.trained_tokens is None else f"{job.trained_tokens:,}"),
        ("result", job.fine_tuned_model or NONE),
    ]
    rows += [("checkpoint", one.fine_tuned_model_checkpoint) for one in checkpoints]
    print_line(job.id)
    for name, value in rows:
        print_line(f"  {name:<14} {value}")


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
