"""What is said before a response: its own input, what it refers to, and the conversation that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opsin_server.api.answer.keep_chat import store_of
from opsin_server.api.answer_store import MAX_SAID_BYTES, check_said, size_of
from opsin_server.api.schemas.responses import Conversation, ResponsesRequest
from opsin_server.api.schemas.responses_items import InputItem
from opsin_server.api.schemas.responses_kept import find_item, kept_item, read_kept, response_of_item
from opsin_server.api.services import Services
from opsin_server.chat.fields import shown
from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.records import StoredAnswer


@dataclass(frozen=True)
class History:
    """items: each with its path in the request. said: the same as they are kept; None where nothing is."""

    items: list[tuple[InputItem, str]]
    said: tuple[Mapping[str, Any], ...] | None


async def history(body: Conversation, response_id: str, services: Services) -> History:
    """Raises BadRequest for what cannot be kept and for a response before it that is not, NotFound for other items."""
    if isinstance(body, ResponsesRequest) and body.store:
        store_of(services, "store", "true")
    found: list[tuple[InputItem, str]] = []
    said: list[Mapping[str, Any]] = []
    if body.previous_response_id is not None:
        before = await _previous(body.previous_response_id, services)
        said += [*before.said, *before.answer["output"]]
        found += [(read_kept(item), "previous_response_id") for item in said]
    for index, item in enumerate(body.input):
        where = f"input[{index}]"
        if item.kind == "item_reference":
            kept = await _referred(item.id or "", f"{where}.id", services)
            found.append((read_kept(kept), where))
            said.append(kept)
        else:
            found.append((item, where))
            said.append(kept_item(item, response_id, len(said)))
    is_kept = isinstance(body, ResponsesRequest) and _is_kept(body, said, services)
    return History(found, tuple(said) if is_kept else None)


def _is_kept(body: ResponsesRequest, said: list[Mapping[str, Any]], services: Services) -> bool:
    """Where nothing is said of it, it is as far as it can be. Raises BadRequest where it must be, and cannot."""
    if services.answers is None or body.store is False:
        return False
    if body.store:
        check_said(said)
        return True
    return size_of(said) <= MAX_SAID_BYTES


async def _referred(own_id: str, param: str, services: Services) -> Mapping[str, Any]:
    store_of(services, param, shown(own_id))
    response_id = response_of_item(own_id)
    stored = None if response_id is None else await _kept(response_id, param, services)
    item = None if stored is None else find_item(stored, own_id)
    if item is None:
        raise NotFound(f"No such item is kept: {own_id[:100]}", param=param)
    return item


async def _previous(response_id: str, services: Services) -> StoredAnswer:
    try:
        return await _kept(response_id, "previous_response_id", services)
    except NotFound:  # clients switch on OpenAI's status and code, and send the whole conversation instead
        raise BadRequest(
            f"Previous response with id '{response_id[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from None


async def _kept(response_id: str, param: str, services: Services) -> StoredAnswer:
    try:
        return await store_of(services, param, shown(response_id)).get("response", response_id)
    except NotFound as error:
        raise NotFound(error.message, param=param) from None
