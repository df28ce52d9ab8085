"""Fine-tuning jobs as OpenAI has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query, labels_of, read_limit
from opsin_server.api.schemas.fine_tuning import CreateJob
from opsin_server.api.schemas.fine_tuning_response import described_checkpoint, described_event, described_job
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.services import ServicesDep
from opsin_server.errors import BadRequest
from opsin_server.storage.records import Page

router = APIRouter(prefix="/fine_tuning")

DEFAULT, MOST = 20, 1000  # of a page
CHECKPOINTS = 10
NO_METADATA = "metadata"


@router.post("/jobs")
async def create_job(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    services.check_open()
    body = parse(CreateJob, await read_body(request, services.config.max_body_bytes))
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > 256:
        raise BadRequest("the Idempotency-Key has more than 256 characters")
    return described_job(await services.fine_tuning.create(body.asked, key))


@router.api_route("/jobs", methods=READ)
async def list_jobs(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    labels = labels_of(request)
    query = known_query(request, ("after", "limit", NO_METADATA, *labels))
    metadata: dict[str, str] | None = {label: query[name] for name, label in labels.items()}
    if NO_METADATA in query:
        if query[NO_METADATA] != "null" or labels:
            raise BadRequest("'metadata' must be null, for jobs without, or metadata[KEY]=VALUE", param=NO_METADATA)
        metadata = None
    page = await services.fine_tuning.page(query.get("after"), read_limit(query, DEFAULT, MOST), metadata)
    return described_page([described_job(job) for job in page.items], page)


@router.api_route("/jobs/{job_id}", methods=READ)
async def retrieve_job(job_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_job(await services.fine_tuning.get(job_id))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_job(await services.fine_tuning.cancel(job_id))


@router.post("/jobs/{job_id}/pause")
async def pause_job(job_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_job(await services.fine_tuning.pause(job_id))


@router.post("/jobs/{job_id}/resume")
async def resume_job(job_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_job(await services.fine_tuning.resume(job_id))


@router.api_route("/jobs/{job_id}/events", methods=READ)
async def list_events(job_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit"))
    page = await services.fine_tuning.events(job_id, query.get("after"), read_limit(query, DEFAULT, MOST))
    return described_page([described_event(event) for event in page.items], page)


@router.api_route("/jobs/{job_id}/checkpoints", methods=READ)
async def list_checkpoints(job_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit"))
    page = await services.fine_tuning.checkpoints(job_id, query.get("after"), read_limit(query, CHECKPOINTS, MOST))
    return described_page([described_checkpoint(one, job_id) for one in page.items], page)


@router.api_route("/checkpoints/{model:path}/permissions", methods=READ)
async def list_permissions(model: str, request: Request) -> Mapping[str, Any]:
    """There are none."""
    query = known_query(request, ("after", "limit", "order", "project_id"))
    read_limit(query, CHECKPOINTS, MOST)
    return described_page([], Page((), False))


@router.api_route("/checkpoints/{model:path}/permissions", methods=["POST", "DELETE"])
@router.api_route("/checkpoints/{model:path}/permissions/{permission}", methods=["DELETE"])
async def permissions(model: str) -> None:
    why = "whoever has a key may use all models"
    raise BadRequest(f"permissions of checkpoints are not supported here: {why}", code="unsupported_parameter")
