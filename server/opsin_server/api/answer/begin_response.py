"""A Responses request on its way to its answer, for its route and for the lines of batches."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.hand_over import sampling
from opsin_server.api.answer.response_events import ResponseEvents
from opsin_server.api.answer.response_history import history
from opsin_server.api.answer.submit import submit
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.api.schemas.responses_chat import chat_form
from opsin_server.api.schemas.responses_object import new_response, new_response_id
from opsin_server.api.services import Services
from opsin_server.storage.records import NewAnswer


async def begin_response(
    body: ResponsesRequest,
    model: str,
    adapter: ServedAdapter | None,
    log: RequestLog,
    services: Services,
    held: AsyncExitStack,
) -> ResponseEvents:
    """model: the name that `adapter` was found by. held: gives back what is held when the answer has ended."""
    response_id = new_response_id()
    before = await history(body, response_id, services)
    form = chat_form(before.items, body.instructions)
    chat = form.request(body, model)
    how, kept = sampling(chat, services.sampling, -1), before.said is not None
    response = new_response(body, model, response_id, int(time.time()), how.temperature, how.top_p, kept=kept)

    async def keep(whole: dict[str, Any]) -> None:
        if services.answers is not None and before.said is not None:
            new = NewAnswer(
                response_id, "response", model, msgspec.to_builtins(whole), before.said, body.metadata or {}
            )
            await services.answers.add(new)

    with form.names():
        generation = await submit(chat, adapter, log, services, held)
    return ResponseEvents(generation, response, keep)
