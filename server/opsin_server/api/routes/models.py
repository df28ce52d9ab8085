"""GET /v1/models: what the served model is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from opsin_server.api.middleware.paths import READ
from opsin_server.api.services import Services, ServicesDep
from opsin_server.errors import NotFound

router = APIRouter()


@router.api_route("/v1/models", methods=READ)
@router.api_route("/models", methods=READ)
async def list_models(services: ServicesDep) -> dict[str, Any]:
    return {"object": "list", "data": [described(name, services) for name in services.names]}


@router.api_route("/v1/models/{name:path}", methods=READ)
@router.api_route("/models/{name:path}", methods=READ)
async def retrieve_model(name: str, services: ServicesDep) -> dict[str, Any]:
    check_served(name, services.names)
    return described(name, services)


def check_served(name: str, names: Sequence[str]) -> None:
    if name not in names:
        message = f"The model '{name[:200]}' is not served here; this server has {', '.join(names)}"
        raise NotFound(message, param="model", code="model_not_found")


def described(name: str, services: Services) -> dict[str, Any]:
    """OpenAI's fields, and `max_model_len` as vLLM has it, null while the model loads."""
    ready = services.engine.ready
    return {
        "id": name,
        "object": "model",
        "created": services.created,
        "owned_by": "opsin",
        "max_model_len": ready.max_context if ready is not None else None,
    }
