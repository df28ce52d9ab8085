"""OpenAI's legacy fine-tunes: bodies and objects, over the same jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from opsin_server.api.schemas.files import described_file
from opsin_server.api.schemas.fine_tuning import Epochs, Name, Positive, Rows, storable
from opsin_server.chat.fields import Strict, only
from opsin_server.storage.records import Job, JobEvent, StoredFile

STATUSES = {"validating_files": "pending", "queued": "pending", "paused": "pending"}
NONE = Annotated[None, only(False)]
ANSWERS_ALONE = Annotated[None, only(0, why="answers alone are learned here, which is the weight 0")]


class LegacyHyperparameters(Strict):
    n_epochs: Epochs = None


class CreateFineTune(Strict):
    training_file: Name
    validation_file: Name | None = None
    model: Name | None = None
    n_epochs: Epochs = None
    batch_size: Rows = None
    learning_rate_multiplier: Positive = None
    hyperparameters: LegacyHyperparameters | None = None
    suffix: Annotated[str, Field(max_length=40), AfterValidator(storable)] | None = None
    prompt_loss_weight: ANSWERS_ALONE = None
    compute_classification_metrics: NONE = None
    classification_n_classes: NONE = None
    classification_positive_class: NONE = None
    classification_betas: NONE = None

    def asked(self, base: str) -> dict[str, Any]:
        """As a job keeps it. base: the model that is trained where none is named."""
        epochs = self.n_epochs or (None if self.hyperparameters is None else self.hyperparameters.n_epochs)
        given = {
            "n_epochs": epochs,
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        }
        return {
            "model": self.model or base,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "suffix": self.suffix,
            "seed": None,
            "metadata": {},
            "method": {
                "type": "supervised",
                "hyperparameters": {name: value for name, value in given.items() if value is not None},
            },
            "integrations": [],
            "opsin": {},
        }


def described_fine_tune(
    job: Job, events: Sequence[JobEvent], files: tuple[Sequence[StoredFile], Sequence[StoredFile], Sequence[StoredFile]]
) -> dict[str, Any]:
    """files: for training, for validation, and results; those that are there still. events: the oldest first."""
    given = job.asked["method"]["hyperparameters"]
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    training, validation, results = ([described_file(file) for file in found] for found in files)
    return {
        "object": "fine-tune",
        "id": job.id,
        "model": job.asked["model"],
        "created_at": int(job.created),
        "updated_at": int(events[-1].created if events else job.created),
        "fine_tuned_model": job.model,
        "organization_id": "org-opsin",
        "status": STATUSES.get(job.status, job.status),
        "hyperparams": {name: (job.resolved or given).get(name) for name in names} | {"prompt_loss_weight": 0.0},
        "training_files": training,
        "validation_files": validation,
        "result_files": results,
        "events": [described_legacy_event(event) for event in events],
    }


def described_legacy_event(event: JobEvent) -> dict[str, Any]:
    return {
        "object": "fine-tune-event",
        "created_at": int(event.created),
        "level": event.level,
        "message": event.message,
    }
