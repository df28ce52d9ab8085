"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's bodies, status codes and words."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from opsin_server.adapters.importer import ImportOptions
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.schemas.adapters import LoadLoraAdapter, UnloadLoraAdapter
from opsin_server.api.services import ServicesDep
from opsin_server.errors import BadRequest, NotFound

router = APIRouter()


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(request: Request, services: ServicesDep) -> Response:
    services.check_open()
    body = parse(LoadLoraAdapter, await read_body(request, services.config.max_body_bytes))
    if body.is_3d_lora_weight:
        raise BadRequest("is_3d_lora_weight is not served: it is of mixtures of experts", param="is_3d_lora_weight")
    name = body.lora_name
    if name in services.adapters.catalogue.snapshot.adapters and not body.load_inplace:
        raise BadRequest(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            "'load_inplace' to True.",
            param="lora_name",
            code="InvalidUserInput",
        )
    try:
        await services.adapters.load_confined(name, body.lora_path, ImportOptions(), "lora_path")
    except BadRequest as error:
        error.param = "lora_name" if error.param == "name" else error.param
        raise
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(request: Request, services: ServicesDep) -> Response:
    body = parse(UnloadLoraAdapter, await read_body(request, services.config.max_body_bytes))
    name = body.lora_name
    if name not in services.adapters.catalogue.snapshot.adapters:
        raise NotFound(f"The lora adapter '{name}' cannot be found.", param="lora_name", code="NotFoundError")
    await services.adapters.unload(name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
