"""A chat completion that is kept because its request says `store`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from opsin_server.api.answer_store import AnswerStore, check_said
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.chat_response import Completion
from opsin_server.api.services import Services
from opsin_server.chat.fields import UNSUPPORTED
from opsin_server.errors import BadRequest
from opsin_server.storage.records import NewAnswer

NOT_KEPT = "answers are not kept here. A server keeps them that is started with --store"


def keeper(body: ChatRequest, services: Services) -> Callable[[Completion], Awaitable[None]] | None:
    """None where nothing is to be kept. Raises BadRequest for what cannot be."""
    if not body.store:
        return None
    store = store_of(services, "store", "true")
    said = tuple(message.model_dump(exclude_none=True, exclude_unset=True) for message in body.messages)
    check_said(said)

    async def keep(completion: Completion) -> None:
        answer: dict[str, Any] = msgspec.to_builtins(completion)
        if body.tools:
            answer["tools"] = [msgspec.json.decode(tool.as_json()) for tool in body.tools]
        await store.add(
            NewAnswer(completion.id, "chat.completion", completion.model, answer, said, body.metadata or {})
        )

    return keep


def store_of(services: Services, param: str, given: str) -> AnswerStore:
    """given: what a request says in `param`, for which there must be one. Raises BadRequest."""
    if services.answers is None:
        message = f"Unsupported value for '{param}': {given} is not supported here: {NOT_KEPT}"
        raise BadRequest(message, param=param, code=UNSUPPORTED)
    return services.answers
