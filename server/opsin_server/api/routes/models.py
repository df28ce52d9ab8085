"""GET /v1/models: what the served model is called."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.middleware.anthropic import speaks_anthropic
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.anthropic_models import anthropic_model, anthropic_page
from opsin_server.api.services import Services, ServicesDep
from opsin_server.errors import BadRequest
from opsin_server.media.video_process import decodes_videos

router = APIRouter()


@router.api_route("/v1/models", methods=READ)
@router.api_route("/models", methods=READ)
async def list_models(request: Request, services: ServicesDep) -> dict[str, Any]:
    if speaks_anthropic(request.scope):
        return anthropic_page(request, services)
    return {"object": "list", "data": [described(name, services) for name in services.adapters.catalogue.names()]}


@router.api_route("/v1/models/{name:path}", methods=READ)
@router.api_route("/models/{name:path}", methods=READ)
async def retrieve_model(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    if speaks_anthropic(request.scope):
        return anthropic_model(name, services)
    return described(name, services)


@router.delete("/v1/models/{name:path}")
@router.delete("/models/{name:path}")
async def delete_model(name: str, services: ServicesDep) -> dict[str, Any]:
    """OpenAI's way to delete a fine-tuned model: an adapter, with all its versions, or an alias."""
    catalogue = services.adapters.catalogue
    if name in catalogue.snapshot.aliases:
        await services.adapters.delete_alias(name)
    elif name in catalogue.snapshot.adapters:
        await services.adapters.unload(name)
    else:
        if catalogue.find(name) is None:
            raise BadRequest(f"'{name}' is the served model itself, which cannot be deleted", param="model")
        raise BadRequest(f"'{name}' is a version: delete it at /v1/adapters", param="model")
    return {"id": name, "object": "model", "deleted": True}


def described(name: str, services: Services) -> dict[str, Any]:
    """OpenAI's fields, and as vLLM has them `max_model_len`, null while the model loads, and for adapters and aliases
    `parent` (what it stands upon) and `root` (the content of the version that answers now). `architecture`: what it
    takes and gives, as OpenRouter has it; `limit_mm_per_prompt`: of each kind but text how many a prompt may have, as
    vLLM's option says it. `opsin`: in what the base's weights are stored and computed, and what it can be asked for,
    null while it loads. Raises NotFound."""
    version = services.adapters.catalogue.find(name)
    ready, alias = services.engine.ready, services.adapters.catalogue.snapshot.aliases.get(name)
    parent, limits = None if version is None else services.names[0], _limits(services)
    if alias is not None:
        parent = alias.adapter or services.names[0]
    return {
        "id": name,
        "object": "model",
        "created": services.created if version is None else int(version.created),
        "owned_by": "opsin",
        "root": name if version is None else f"sha256:{version.facts.digest}",
        "parent": parent,
        "max_model_len": ready.max_context if ready is not None else None,
        "architecture": {
            "input_modalities": ["text", *limits],
            "output_modalities": ["embeddings"] if services.chat_encoder is None else ["text", "embeddings"],
        },
        "limit_mm_per_prompt": limits,
        "opsin": None
        if ready is None
        else {"dtype": ready.dtype, "weights": dict(ready.stored), **_abilities(services)},
    }


def _limits(services: Services) -> dict[str, int]:
    """Pictures and video files of a request, where any are taken."""
    encoder, media = services.chat_encoder, services.config.media
    if encoder is None:
        return {"image": 1} if "image" in services.embedder.facts.inputs else {}
    limits = {"image": media.max_images} if encoder.takes_images else {}
    if encoder.takes_videos and decodes_videos() and media.max_videos:
        limits["video"] = media.max_videos
    return limits


def _abilities(services: Services) -> dict[str, Any]:
    """What it can be asked for, and what its embeddings are."""
    about = services.embedder.facts
    tasks = ["embeddings"] if services.chat_encoder is None else ["chat", "embeddings"]
    embeddings = {"dimensions": about.dimensions, "inputs": list(about.inputs), "normalized": about.pooling.normalized}
    return {"tasks": tasks, "embeddings": embeddings}
