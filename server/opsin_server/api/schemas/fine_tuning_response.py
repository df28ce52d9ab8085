"""What the routes of fine-tuning jobs answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from opsin_server.storage.records import Job, JobCheckpoint, JobEvent, JobStatus, Level

Number = int | float | Literal["auto"]


class JobNumbers(TypedDict):
    """Hyperparameters: "auto" until it is known what that is."""

    n_epochs: Number
    batch_size: Number
    learning_rate_multiplier: Number


class DpoNumbers(JobNumbers):
    beta: Number


class SupervisedMethod(TypedDict):
    hyperparameters: JobNumbers


class DpoMethod(TypedDict):
    hyperparameters: DpoNumbers


class JobMethod(TypedDict):
    type: Literal["supervised", "dpo"]
    supervised: NotRequired[SupervisedMethod]
    dpo: NotRequired[DpoMethod]


class JobError(TypedDict):
    code: str
    message: str
    param: str | None


class JobIntegration(TypedDict):
    type: str


class JobObject(TypedDict):
    object: Literal["fine_tuning.job"]
    id: str
    model: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    organization_id: str
    result_files: list[str]
    status: JobStatus
    validation_file: str | None
    training_file: str
    hyperparameters: JobNumbers
    trained_tokens: int | None
    error: JobError | None
    user_provided_suffix: str | None
    seed: int | None
    integrations: list[JobIntegration]
    metadata: dict[str, str]
    method: JobMethod
    opsin: dict[str, Any]


class JobEventObject(TypedDict):
    object: Literal["fine_tuning.job.event"]
    id: str
    created_at: int
    level: Level
    message: str
    data: dict[str, Any]
    type: Literal["message", "metrics"]


class CheckpointObject(TypedDict):
    object: Literal["fine_tuning.job.checkpoint"]
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float | None]
    step_number: int


def described_job(job: Job) -> JobObject:
    asked = job.asked
    numbers = _numbers(job)
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": asked["model"],
        "created_at": int(job.created),
        "finished_at": _seconds(job.finished),
        "estimated_finish": _seconds(job.estimated_finish),
        "fine_tuned_model": job.model,
        "organization_id": "org-opsin",
        "result_files": [] if job.result_file is None else [job.result_file],
        "status": job.status,
        "validation_file": asked["validation_file"],
        "training_file": asked["training_file"],
        "hyperparameters": numbers,
        "trained_tokens": job.trained_tokens,
        "error": None if job.error is None else _error(job.error),
        "user_provided_suffix": asked["suffix"],
        "seed": asked["seed"],
        "integrations": asked.get("integrations", []),
        "metadata": asked["metadata"],
        "method": _method(job, numbers),
        "opsin": asked["opsin"],
    }


def described_event(event: JobEvent) -> JobEventObject:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": int(event.created),
        "level": event.level,
        "message": event.message,
        "data": {} if event.data is None else dict(event.data),
        "type": event.kind,
    }


def described_checkpoint(checkpoint: JobCheckpoint, job_id: str) -> CheckpointObject:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": int(checkpoint.created),
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": job_id,
        "metrics": dict(checkpoint.metrics),
        "step_number": checkpoint.step,
    }


def _error(error: Mapping[str, Any]) -> JobError:
    return {"code": error["code"], "message": error["message"], "param": error["param"]}


def _method(job: Job, numbers: JobNumbers) -> JobMethod:
    if job.asked["method"]["type"] == "dpo":
        return {"type": "dpo", "dpo": {"hyperparameters": {**numbers, "beta": _number(job, "beta")}}}
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def _numbers(job: Job) -> JobNumbers:
    return {
        "n_epochs": _number(job, "n_epochs"),
        "batch_size": _number(job, "batch_size"),
        "learning_rate_multiplier": _number(job, "learning_rate_multiplier"),
    }


def _number(job: Job, name: str) -> Number:
    """What was settled, or was asked for until then."""
    given: Number = job.asked["method"]["hyperparameters"].get(name, "auto")
    return (job.resolved or {}).get(name, given)


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
