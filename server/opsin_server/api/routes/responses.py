"""POST /v1/responses: a conversation as items in, an answer as items out, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.begin_response import begin_response
from opsin_server.api.answer.compact import compact
from opsin_server.api.answer.event_stream import HEADERS
from opsin_server.api.answer.keep_chat import NOT_KEPT
from opsin_server.api.answer.replayed_response import replayed
from opsin_server.api.answer.response_events import written
from opsin_server.api.answer.response_history import history
from opsin_server.api.answer.response_stream import ResponseStream
from opsin_server.api.answer.submit import conversation, encoded
from opsin_server.api.answer_store import AnswerStore
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.chat import admitted, version_headers
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.routes.read_query import known_query, newest_first, page_of, read_flag, read_limit, read_number
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.schemas.responses import CompactRequest, InputTokensRequest, ResponsesRequest
from opsin_server.api.schemas.responses_chat import chat_form
from opsin_server.api.services import RequestLogDep, Services, ServicesDep
from opsin_server.errors import NotFound

router = APIRouter()

DEFAULT, MOST = 20, 100  # of a page
EVENTS = "text/event-stream"
MOST_EVENTS = 10**9
INCLUDE = ("include", "include[]")  # all is shown


async def _body(request: Request) -> ResponsesRequest:
    return parse(ResponsesRequest, await open_body(request))


async def _count_body(request: Request) -> InputTokensRequest:
    return parse(InputTokensRequest, await open_body(request))


async def _compact_body(request: Request) -> CompactRequest:
    return parse(CompactRequest, await open_body(request))


@router.post("/responses")
async def create_response(
    body: Annotated[ResponsesRequest, Depends(_body)], request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    """As a chat's answer, what is held is given back when it has ended."""
    model = body.model or services.names[0]
    adapter = await services.adapters.resolve(model)
    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            events = await begin_response(body, model, adapter, log, services, held)
            if not body.stream:
                content = encode(await events.whole())
                return Response(content, media_type="application/json", headers=version_headers(adapter))
        headers, obfuscated = version_headers(adapter), body.wants_obfuscation
        return ResponseStream(events, cancellation, held.pop_all(), headers, obfuscated=obfuscated)


@router.post("/responses/compact")
async def compact_conversation(
    body: Annotated[CompactRequest, Depends(_compact_body)], request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    model = body.model or services.names[0]
    adapter = await services.adapters.resolve(model)
    async with AsyncExitStack() as held, admitted(services.admission, held).attended(request.receive):
        content = encode(await compact(body, model, adapter, log, services, held))
    return Response(content, media_type="application/json", headers=version_headers(adapter))


@router.post("/responses/input_tokens")
async def count_input_tokens(
    body: Annotated[InputTokensRequest, Depends(_count_body)], request: Request, services: ServicesDep
) -> dict[str, Any]:
    """Of the prompt as it would be computed, with the tokens of its pictures."""
    model = body.model or services.names[0]
    adapter = await services.adapters.resolve(model)
    form = chat_form((await history(body, "", services)).items, body.instructions)
    chat = form.request(body, model)
    async with AsyncExitStack() as held, admitted(services.admission, held).attended(request.receive):
        with form.names():
            prompt = await encoded(conversation(chat, adapter, services), chat, services)
    return {"object": "response.input_tokens", "input_tokens": len(prompt.ids)}


@router.api_route("/responses/{response_id}", methods=READ)
async def retrieve_response(response_id: str, request: Request, services: ServicesDep) -> Response:
    """Or, with `stream`, the events of it."""
    query = known_query(request, ("stream", "starting_after", "include_obfuscation", *INCLUDE))
    streams, obfuscated = read_flag(query, "stream"), read_flag(query, "include_obfuscation")
    after = read_number(query, "starting_after", 0, MOST_EVENTS) if "starting_after" in query else -1
    answer = (await _store(services).get("response", response_id)).answer
    if not streams:
        return Response(encode(answer), media_type="application/json")
    return Response(written(replayed(answer, after), obfuscated=obfuscated), media_type=EVENTS, headers=HEADERS)


@router.post("/responses/{response_id}/cancel")
async def cancel_response(response_id: str, services: ServicesDep) -> dict[str, Any]:
    """What is kept has ended: there is nothing to cancel, and it comes back as it is."""
    return dict((await _store(services).get("response", response_id)).answer)


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, services: ServicesDep) -> dict[str, Any]:
    await _store(services).delete("response", response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.api_route("/responses/{response_id}/input_items", methods=READ)
async def list_input_items(response_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
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
