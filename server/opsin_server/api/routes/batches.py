"""Batches of requests as OpenAI has them: create, retrieve, cancel, list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query, read_limit
from opsin_server.api.schemas.batches import ENDPOINTS, CreateBatch, described_batch
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.services import ServicesDep
from opsin_server.errors import BadRequest

router = APIRouter(prefix="/batches")

DEFAULT, MOST = 20, 100  # of a page


@router.post("")
async def create_batch(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    services.check_open()
    body = parse(CreateBatch, await read_body(request, services.config.max_body_bytes))
    if body.endpoint not in ENDPOINTS:
        message = f"The endpoint '{body.endpoint[:100]}' is not supported here: it must be {' or '.join(ENDPOINTS)}"
        raise BadRequest(message, param="endpoint", code="unsupported_parameter")
    lasts = None if body.output_expires_after is None else body.output_expires_after.seconds
    batch = await services.batches.create(body.endpoint, body.input_file_id, body.metadata or {}, lasts)
    return described_batch(batch)


@router.api_route("", methods=READ)
async def list_batches(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit"))
    page = await services.batches.page(query.get("after"), read_limit(query, DEFAULT, MOST))
    return described_page([described_batch(batch) for batch in page.items], page)


@router.api_route("/{batch_id}", methods=READ)
async def retrieve_batch(batch_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_batch(await services.batches.get(batch_id))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_batch(await services.batches.cancel(batch_id))
