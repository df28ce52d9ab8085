"""Webhook endpoints as OpenAI has them: events of jobs are sent to them, signed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel

from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query, read_limit
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.schemas.webhooks import (
    EVENT_TYPES,
    ChangeWebhook,
    CreateWebhook,
    RotateSecret,
    SampleWebhook,
    described_webhook,
)
from opsin_server.api.services import ServicesDep

router = APIRouter()

DEFAULT, MOST = 20, 100  # of a page
BODY = 2**16  # bytes

Model = TypeVar("Model", bound=BaseModel)


@router.api_route("/webhook_event_types", methods=READ)
async def list_event_types() -> dict[str, Any]:
    return {"object": "list", "data": list(EVENT_TYPES)}


@router.post("/webhook_endpoints")
async def create_endpoint(request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await _body(CreateWebhook, request)
    return described_webhook(await services.webhooks.create(body.name, body.url, body.event_types), secret=True)


@router.api_route("/webhook_endpoints", methods=READ)
async def list_endpoints(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit"))
    page = await services.webhooks.page(query.get("after"), read_limit(query, DEFAULT, MOST))
    return described_page([described_webhook(endpoint) for endpoint in page.items], page)


@router.api_route("/webhook_endpoints/{endpoint_id}", methods=READ)
async def retrieve_endpoint(endpoint_id: str, services: ServicesDep) -> dict[str, Any]:
    return described_webhook(await services.webhooks.get(endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}")
async def change_endpoint(endpoint_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await _body(ChangeWebhook, request)
    changes = {name: value for name, value in body.model_dump().items() if value is not None}
    return described_webhook(await services.webhooks.change(endpoint_id, changes))


@router.delete("/webhook_endpoints/{endpoint_id}")
async def delete_endpoint(endpoint_id: str, services: ServicesDep) -> dict[str, Any]:
    await services.webhooks.delete(endpoint_id)
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
async def rotate_secret(endpoint_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await _body(RotateSecret, request)
    keep = body.keep_old_secret_active_for_24_hours
    return described_webhook(await services.webhooks.rotate_secret(endpoint_id, keep_old=keep), secret=True)


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def send_sample(endpoint_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await _body(SampleWebhook, request)
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint_id,
        "event_type": body.event_type,
        "status_code": await services.webhooks.test(endpoint_id, body.event_type),
        "success": True,
    }


async def _body(model: type[Model], request: Request) -> Model:
    return parse(model, await read_body(request, BODY) or b"{}")
