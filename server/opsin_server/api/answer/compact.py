"""A conversation made short: what the user said as it was said, and the model's own summary of it all."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.response_history import history
from opsin_server.api.answer.submit import submit
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.schemas.compaction import ASKED, compaction_item
from opsin_server.api.schemas.responses import CompactRequest, ResponsesRequest
from opsin_server.api.schemas.responses_chat import chat_form
from opsin_server.api.schemas.responses_items import said_by_user
from opsin_server.api.schemas.responses_kept import kept_item
from opsin_server.api.schemas.responses_object import described_usage, item_id, new_response_id
from opsin_server.api.services import Services


async def compact(
    body: CompactRequest,
    model: str,
    adapter: ServedAdapter | None,
    log: RequestLog,
    services: Services,
    held: AsyncExitStack,
) -> dict[str, Any]:
    """model: the name that `adapter` was found by. held: gives back what is held when the answer has ended."""
    response_id = new_response_id()
    said = (await history(body, response_id, services)).items
    form = chat_form([*said, *((item, "input") for item in said_by_user(ASKED))], body.instructions)
    with form.names():
        generation = await submit(
            form.request(ResponsesRequest.model_validate({}), model), adapter, log, services, held
        )
    summary = (await generation.completion()).choices[0].message.content or ""
    users = [item for item, _ in said if item.role == "user" and item.content]
    kept = [kept_item(item, response_id, number) for number, item in enumerate(users)]
    return {
        "id": response_id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*kept, compaction_item(item_id("cmp", response_id, len(kept), "i"), summary)],
        "usage": described_usage(generation.usage()),
    }
