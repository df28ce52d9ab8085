"""OpenAI's legacy fine-tunes, by each of the names that they were known under: the same jobs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from opsin_server.api.answer.event_stream import DONE
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query
from opsin_server.api.schemas.fine_tunes import CreateFineTune, described_fine_tune, described_legacy_event
from opsin_server.api.services import Services, ServicesDep
from opsin_server.errors import BadRequest
from opsin_server.storage.records import Job, JobEvent

router = APIRouter()

MOST = 1000  # of a list
NAMES = ("/fine_tunes", "/fine-tunes")


async def create_fine_tune(request: Request, services: ServicesDep) -> dict[str, Any]:
    services.check_open()
    body = parse(CreateFineTune, await read_body(request, services.config.max_body_bytes))
    key = request.headers.get("idempotency-key")
    return await _described(await services.fine_tuning.create(body.asked(services.names[0]), key), services)


async def list_fine_tunes(request: Request, services: ServicesDep) -> dict[str, Any]:
    known_query(request, ())
    page = await services.fine_tuning.page(None, MOST, {})
    return {"object": "list", "data": [await _described(job, services, events=False) for job in page.items]}


async def retrieve_fine_tune(fine_tune_id: str, services: ServicesDep) -> dict[str, Any]:
    return await _described(await services.fine_tuning.get(fine_tune_id), services)


async def cancel_fine_tune(fine_tune_id: str, services: ServicesDep) -> dict[str, Any]:
    return await _described(await services.fine_tuning.cancel(fine_tune_id), services)


async def list_fine_tune_events(
    fine_tune_id: str, request: Request, services: ServicesDep
) -> Response | dict[str, Any]:
    """stream=true: as server-sent events, until the job has ended."""
    query = known_query(request, ("stream",))
    if (stream := query.get("stream", "false").lower()) not in ("true", "false"):
        raise BadRequest("Invalid value for 'stream': it must be true or false", param="stream")
    if stream == "true":
        await services.fine_tuning.get(fine_tune_id)  # one that is not there is no stream
        return LegacyEvents(_stream(fine_tune_id, services), media_type="text/event-stream")
    events = await _events(fine_tune_id, services)
    return {"object": "list", "data": [described_legacy_event(event) for event in events]}


class LegacyEvents(StreamingResponse):
    """The last event and the end of the body go out together: a client leaves when it has read the former."""

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for events in self.body_iterator:
            await send({"type": "http.response.body", "body": events, "more_body": events != DONE})


async def _stream(fine_tune_id: str, services: Services) -> AsyncIterator[bytes]:
    async for event in services.fine_tuning.follow(fine_tune_id):
        yield f"data: {json.dumps(described_legacy_event(event))}\n\n".encode()
    yield DONE


async def _events(fine_tune_id: str, services: Services) -> list[JobEvent]:
    page = await services.fine_tuning.events(fine_tune_id, None, MOST)
    return list(page.items)[::-1]


async def _described(job: Job, services: Services, *, events: bool = True) -> dict[str, Any]:
    jobs, asked = services.fine_tuning, job.asked
    files = (
        await jobs.file_of(asked["training_file"]),
        await jobs.file_of(asked["validation_file"]),
        await jobs.file_of(job.result_file),
    )
    return described_fine_tune(job, await _events(job.id, services) if events else [], files)


for name in NAMES:
    router.add_api_route(name, create_fine_tune, methods=["POST"])
    router.add_api_route(name, list_fine_tunes, methods=READ)
    router.add_api_route(name + "/{fine_tune_id}", retrieve_fine_tune, methods=READ)
    router.add_api_route(name + "/{fine_tune_id}/cancel", cancel_fine_tune, methods=["POST"])
    router.add_api_route(name + "/{fine_tune_id}/events", list_fine_tune_events, methods=READ, response_model=None)
