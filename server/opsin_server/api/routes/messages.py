"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, over the same answers as a chat's."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.anthropic_events import MessageStream, message
from opsin_server.api.answer.submit import conversation, encoded, submit
from opsin_server.api.routes.chat import admitted, version_headers
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.messages_chat import to_chat
from opsin_server.api.schemas.messages_request import CountTokensRequest, MessagesRequest
from opsin_server.api.schemas.messages_response import TokensCount
from opsin_server.api.services import RequestLogDep, ServicesDep
from opsin_server.errors import BadRequest

router = APIRouter()


async def _message_body(request: Request) -> MessagesRequest:
    return parse(MessagesRequest, await open_body(request))


async def _count_body(request: Request) -> CountTokensRequest:
    return parse(CountTokensRequest, await open_body(request))


MessageBody = Annotated[MessagesRequest, Depends(_message_body)]
CountBody = Annotated[CountTokensRequest, Depends(_count_body)]


@router.post("/messages")
async def create(body: MessageBody, request: Request, log: RequestLogDep, services: ServicesDep) -> Response:
    adapter = await services.adapters.resolve(body.model)
    chat, form = to_chat(body)
    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            try:
                generation = await submit(chat, adapter, log, services, held, "msg_")
            except BadRequest as error:
                raise form.blame(error) from None
            if not body.stream:
                content = encode(await message(generation))
                return Response(content, media_type="application/json", headers=version_headers(adapter))
        return MessageStream(generation, cancellation, held.pop_all(), log.id, version_headers(adapter))


@router.post("/messages/count_tokens")
async def count_tokens(body: CountBody, request: Request, services: ServicesDep) -> Response:
    """Of the prompt as it would be computed, with the tokens of its pictures."""
    adapter = await services.adapters.resolve(body.model)
    chat, form = to_chat(body)
    async with AsyncExitStack() as held, admitted(services.admission, held).attended(request.receive):
        try:
            prompt = await encoded(conversation(chat, adapter, services), chat, services)
        except BadRequest as error:
            raise form.blame(error) from None
    return Response(encode(TokensCount(len(prompt.ids))), media_type="application/json")
