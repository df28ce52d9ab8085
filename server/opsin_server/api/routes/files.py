"""Files as OpenAI has them: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, BinaryIO

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.chat import admitted
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query, newest_first, read_limit
from opsin_server.api.routes.read_upload import read_upload
from opsin_server.api.schemas.files import PURPOSES, CheckFile, described_file
from opsin_server.api.schemas.pages import described_page
from opsin_server.api.services import ServicesDep
from opsin_server.errors import BadRequest

router = APIRouter()

MOST = 10_000  # files of a page
CHUNK = 2**20
RESULTS = "fine-tune-results"  # as small as a job has steps
BATCH_OUTPUT = "batch_output"
LASTS = range(3600, 30 * 24 * 3600 + 1)  # seconds
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


@router.post("/files")
async def create_file(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    files = services.files
    async with read_upload(request, files.scratch, files.max_bytes, "--max-file-bytes") as upload:
        purpose, lasts = _purpose(upload.fields), _lasts(upload.fields)
        if not upload.received:
            raise BadRequest("The file is empty", param="file")
        return described_file(await files.add(upload.file, upload.name, purpose, lasts))


@router.api_route("/files", methods=READ)
async def list_files(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    query = known_query(request, ("after", "limit", "order", "purpose"))
    limit = read_limit(query, MOST, MOST)
    page = await services.files.page(query.get("after"), limit, newest_first(query), query.get("purpose"))
    return described_page([described_file(file) for file in page.items], page)


@router.api_route("/files/{file_id}", methods=READ)
async def retrieve_file(file_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_file(await services.files.get(file_id))


@router.api_route("/files/{file_id}/content", methods=READ)
async def file_content(file_id: str, request: Request, services: ServicesDep) -> Response:
    """Of results base64, as OpenAI sends them; plain to those who accept text/csv."""
    file, opened = await services.files.content(file_id)
    plain = file.purpose == RESULTS and "text/csv" in request.headers.get("accept", "")
    if file.purpose == RESULTS and not plain:
        with opened:
            data = await asyncio.to_thread(opened.read)
        return Response(base64.b64encode(data), media_type="application/octet-stream")
    name = file.name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
    headers = {"content-length": str(file.size), "content-disposition": f'attachment; filename="{name}"'}
    kind = "text/csv" if plain else "application/octet-stream"
    return StreamingResponse(_read(opened), media_type=kind, headers=headers)


@router.post("/files/{file_id}/check")
async def check_file(file_id: str, request: Request, services: ServicesDep) -> Response:
    """What a job would make of a training file's first lines."""
    services.check_open()
    body = parse(CheckFile, await read_body(request, services.config.max_body_bytes) or b"{}")
    async with AsyncExitStack() as held, admitted(services.admission, held, drained=False).attended(request.receive):
        found = await services.fine_tuning.check_file(file_id, body.opsin or {}, body.lines, body.rows)
        return Response(msgspec.json.encode(found), media_type="application/json")


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, services: ServicesDep) -> Mapping[str, Any]:
    await services.files.delete(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


async def _read(opened: BinaryIO) -> AsyncIterator[bytes]:
    with opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK):
            yield chunk


def _purpose(fields: Mapping[str, str]) -> str:
    if unknown := next((name for name in fields if name not in ("purpose", ANCHOR, SECONDS)), None):
        message = f"Unrecognized request argument supplied: {unknown[:100]}"
        raise BadRequest(message, param=unknown[:100], code="unknown_parameter")
    if (purpose := fields.get("purpose")) is None:
        raise BadRequest("Missing required parameter: 'purpose'", param="purpose", code="missing_required_parameter")
    if purpose in PURPOSES:
        return purpose
    known = f"it must be one of {', '.join(PURPOSES)}"
    raise BadRequest(f"Invalid value for 'purpose': {known}", param="purpose", code="invalid_value")


def _lasts(fields: Mapping[str, str]) -> int | None:
    """Seconds."""
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    if fields.get(ANCHOR) != "created_at":
        raise BadRequest(f"Invalid value for '{ANCHOR}': it must be created_at", param="expires_after")
    text = fields.get(SECONDS, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) in LASTS):
        raise BadRequest(
            f"Invalid value for '{SECONDS}': it must be a number from {LASTS.start:,} to {LASTS.stop - 1:,}",
            param="expires_after",
        )
    return int(text)
