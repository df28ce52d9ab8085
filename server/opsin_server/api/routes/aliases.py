"""/v1/aliases: strings that clients already send, which mean the base model or an adapter here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.schemas.adapters import CreateAlias, described_alias
from opsin_server.api.services import ServicesDep
from opsin_server.errors import NotFound

router = APIRouter()


@router.api_route("/v1/aliases", methods=READ)
async def list_aliases(services: ServicesDep) -> dict[str, Any]:
    aliases, base = services.adapters.catalogue.snapshot.aliases, services.names[0]
    return {"object": "list", "data": [described_alias(aliases[name], base) for name in sorted(aliases)]}


@router.post("/v1/aliases")
async def set_alias(request: Request, services: ServicesDep) -> Response:
    """Makes it, or moves it, at once for all that comes after."""
    body = parse(CreateAlias, await read_body(request, services.config.max_body_bytes))
    alias = await services.adapters.set_alias(body.alias, body.target)
    return JSONResponse(described_alias(alias, services.names[0]), 201)


@router.api_route("/v1/aliases/{name:path}", methods=READ)
async def retrieve_alias(name: str, services: ServicesDep) -> dict[str, Any]:
    found = services.adapters.catalogue.snapshot.aliases.get(name)
    if found is None:
        raise NotFound(f"There is no alias '{name[:200]}'", param="alias", code="alias_not_found")
    return described_alias(found, services.names[0])


@router.delete("/v1/aliases/{name:path}")
async def delete_alias(name: str, services: ServicesDep) -> dict[str, Any]:
    await services.adapters.delete_alias(name)
    return {"object": "alias", "id": name, "deleted": True}
