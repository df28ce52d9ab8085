"""Uploads as OpenAI has them: a file in parts, which may come at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.file_service import PART_BYTES
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_upload import read_upload
from opsin_server.api.schemas.files import CompleteUpload, CreateUpload, described_part, described_upload
from opsin_server.api.services import ServicesDep
from opsin_server.storage.records import NewUpload

router = APIRouter()


@router.post("/uploads")
async def create_upload(request: Request, services: ServicesDep) -> Mapping[str, Any]:
    body = parse(CreateUpload, await read_body(request, services.config.max_body_bytes))
    lasts = None if body.expires_after is None else body.expires_after.seconds
    new = NewUpload(body.purpose, body.filename, body.bytes, lasts)
    return described_upload(await services.files.begin_upload(new))


@router.post("/uploads/{upload_id}/parts")
async def add_part(upload_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
    files = services.files
    await files.check_pending(upload_id)
    async with read_upload(request, files.scratch, PART_BYTES, "of a part", part="data") as upload:
        return described_part(await files.add_part(upload_id, upload.file))


@router.post("/uploads/{upload_id}/complete")
async def complete_upload(upload_id: str, request: Request, services: ServicesDep) -> Mapping[str, Any]:
    body = parse(CompleteUpload, await read_body(request, services.config.max_body_bytes))
    return described_upload(await services.files.complete_upload(upload_id, body.part_ids, body.md5))


@router.post("/uploads/{upload_id}/cancel")
async def cancel_upload(upload_id: str, services: ServicesDep) -> Mapping[str, Any]:
    return described_upload(await services.files.cancel_upload(upload_id))
