"""Bodies of the routes of batches; and what these answer."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import Field, field_validator

from opsin_server.api.schemas.files import ExpiresAfter
from opsin_server.api.schemas.fine_tuning import Name, checked_pairs
from opsin_server.chat.fields import Strict, unsupported
from opsin_server.storage.records import Batch, BatchFault, BatchStatus

WINDOW: Literal["24h"] = "24h"
ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings")  # whose requests lines are


class CreateBatch(Strict):
    input_file_id: Annotated[Name, Field(description="a file's id, of the purpose `batch`")]
    endpoint: Annotated[str, Field(description=" · ".join(f"`{path}`" for path in ENDPOINTS))]
    completion_window: Annotated[str, Field(description=f"`{WINDOW}`")]
    metadata: Annotated[dict[str, str] | None, Field(description="comes back with the batch; at most 16 pairs")] = None
    output_expires_after: Annotated[ExpiresAfter | None, Field(description="of the files of answers")] = None

    @field_validator("completion_window")
    @classmethod
    def _a_day(cls, window: str) -> str:
        if window != WINDOW:
            raise unsupported(window, f"'completion_window' must be {WINDOW}")
        return window

    @field_validator("metadata")
    @classmethod
    def _small(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        return checked_pairs(metadata)


class BatchError(TypedDict):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class CachedTokens(TypedDict):
    cached_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class BatchUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(TypedDict):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


def described_batch(batch: Batch) -> BatchObject:
    errors = [_described_fault(fault) for fault in batch.errors]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(batch.created),
        "expires_at": int(batch.expires),
        "in_progress_at": _when(batch, "in_progress"),
        "finalizing_at": _when(batch, "finalizing"),
        "completed_at": _when(batch, "completed"),
        "failed_at": _when(batch, "failed"),
        "expired_at": _when(batch, "expired"),
        "cancelling_at": _when(batch, "cancelling"),
        "cancelled_at": _when(batch, "cancelled"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": dict(batch.metadata) or None,
    }


def _described_fault(fault: BatchFault) -> BatchError:
    return {"code": fault.code, "message": fault.message, "line": fault.line, "param": fault.param}


def _when(batch: Batch, status: BatchStatus) -> int | None:
    seconds = batch.times.get(status)
    return None if seconds is None else int(seconds)
