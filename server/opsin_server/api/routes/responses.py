"""POST /v1/responses: a conversation as items in, an answer as items out, whole or as a stream of events."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.hand_over import sampling
from opsin_server.api.answer.keep_chat import NOT_KEPT
from opsin_server.api.answer.response_events import ResponseEvents
from opsin_server.api.answer.response_history import history
from opsin_server.api.answer.response_stream import ResponseStream
from opsin_server.api.answer.submit import submit
from opsin_server.api.answer_store import AnswerStore
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.chat import admitted, version_headers
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.routes.read_query import known_query, newest_first, page_of, read_limit
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.api.schemas.responses_chat import chat_form
from opsin_server.api.schemas.responses_object import new_response, new_response_id
from opsin_server.api.services import RequestLogDep, Services, ServicesDep
from opsin_server.errors import NotFound
from opsin_server.storage.records import NewAnswer

router = APIRouter()

DEFAULT, MOST = 20, 100  # of a page
INCLUDE = ("include", "include[]")  # all is shown


async def _body(request: Request) -> ResponsesRequest:
    return parse(ResponsesRequest, await open_body(request))


@router.post("/responses")
async def create_response(
    body: Annotated[ResponsesRequest, Depends(_body)], request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    """As a chat's answer, what is held is given back when it has ended."""
    adapter = await services.adapters.resolve(body.model)
    response_id = new_response_id()
    before = await history(body, response_id, services)
    form = chat_form(before.items, body.instructions)
    chat = form.request(body)
    how, kept = sampling(chat, services.sampling, -1), before.said is not None
    response = new_response(body, response_id, int(time.time()), how.temperature, how.top_p, kept=kept)

    async def keep(whole: dict[str, Any]) -> None:
        if services.answers is not None and before.said is not None:
            new = NewAnswer(
                response_id, "response", body.model, msgspec.to_builtins(whole), before.said, body.metadata or {}
            )
            await services.answers.add(new)

    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            with form.names():
                generation = await submit(chat, adapter, log, services, held)
            events = ResponseEvents(generation, response, keep)
            if not body.stream:
                content = encode(await events.whole())
                return Response(content, media_type="application/json", headers=version_headers(adapter))
        return ResponseStream(generation, events, cancellation, held.pop_all(), version_headers(adapter))


@router.api_route("/responses/{response_id}", methods=READ)
async def retrieve_response(response_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    known_query(request, INCLUDE)
    return dict((await _store(services).get("response", response_id)).answer)


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, services: ServicesDep) -> dict[str, Any]:
    await _store(services).delete("response", response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.api_route("/responses/{response_id}/input_items", methods=READ)
async def list_input_items(response_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    query = known_query(request, ("after", "limit", "order", *INCLUDE))
    stored = await _store(services).get("response", response_id)
    items = [dict(item) for item in stored.said]
    page = page_of(items, query, read_limit(query, DEFAULT, MOST), newest_first(query), "item")
    return described_page(list(page.items), page)


def _store(services: Services) -> AnswerStore:
    """Raises NotFound."""
    if services.answers is None:
        raise NotFound(f"No such response: {NOT_KEPT}", param="id")
    return services.answers
