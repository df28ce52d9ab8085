"""Chat completions that requests asked to keep, of a server that keeps any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.answer_store import AnswerStore
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query, labels_of, newest_first, page_of, read_limit
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.schemas.stored_chats import ChangeStored, described_messages, described_stored
from opsin_server.api.services import Services, ServicesDep

router = APIRouter()

DEFAULT, MOST = 20, 100  # of a page
BODY = 2**16  # bytes


@router.api_route("/chat/completions", methods=READ)
async def list_stored(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    labels = labels_of(request)
    query = known_query(request, ("after", "limit", "order", "model", *labels))
    page = await _store(services).page(
        "chat.completion",
        after=query.get("after"),
        limit=read_limit(query, DEFAULT, MOST),
        newest_first=newest_first(query, "asc"),
        model=query.get("model"),
        metadata={label: query[name] for name, label in labels.items()},
    )
    return described_page([described_stored(stored) for stored in page.items], page)


@router.api_route("/chat/completions/{answer_id}", methods=READ)
async def retrieve_stored(answer_id: str, services: ServicesDep) -> dict[str, Any]:
    return described_stored(await _store(services).get("chat.completion", answer_id))


@router.post("/chat/completions/{answer_id}")
async def change_stored(answer_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = parse(ChangeStored, await read_body(request, BODY))
    return described_stored(await _store(services).relabel("chat.completion", answer_id, body.metadata or {}))


@router.delete("/chat/completions/{answer_id}")
async def delete_stored(answer_id: str, services: ServicesDep) -> dict[str, Any]:
    await _store(services).delete("chat.completion", answer_id)
    return {"id": answer_id, "object": "chat.completion.deleted", "deleted": True}


@router.api_route("/chat/completions/{answer_id}/messages", methods=READ)
async def list_messages(answer_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit", "order"))
    stored = await _store(services).get("chat.completion", answer_id)
    page = page_of(
        described_messages(stored), query, read_limit(query, DEFAULT, MOST), newest_first(query, "asc"), "message"
    )
    return described_page(list(page.items), page)


def _store(services: Services) -> AnswerStore:
    assert services.answers is not None  # or these routes are not there
    return services.answers
