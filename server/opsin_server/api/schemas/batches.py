"""Bodies of the routes of batches; and what these answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, field_validator

from opsin_server.api.schemas.files import ExpiresAfter
from opsin_server.api.schemas.fine_tuning import Name, checked_pairs
from opsin_server.chat.fields import Strict, unsupported
from opsin_server.storage.records import Batch, BatchStatus

WINDOW = "24h"
ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings")  # whose requests lines are
STATES: tuple[BatchStatus, ...] = (
    "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
)  # fmt: skip


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


def described_batch(batch: Batch) -> dict[str, Any]:
    at: dict[str, Any] = {f"{state}_at": _whole(batch.times.get(state)) for state in STATES}
    errors = [asdict(fault) for fault in batch.errors]
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
        **at,
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


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
