"""GET /openapi.json: the API, described for programs. Behind the keys, as /v1/models is."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from opsin_server.api.middleware.paths import READ
from opsin_server.api.reference.openapi import encoded_document
from opsin_server.api.services import ServicesDep

router = APIRouter()


@router.api_route("/openapi.json", methods=READ)
async def describe_api(services: ServicesDep) -> Response:
    """Made when it is first asked for, in a thread: it takes a tenth of a second."""
    config, keeps = services.config, services.answers is not None
    made = await asyncio.to_thread(
        encoded_document, config.root_path, keeps_answers=keeps, has_keys=bool(config.api_keys)
    )
    return Response(made, media_type="application/json")
