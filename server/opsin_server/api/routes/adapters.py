"""/v1/adapters: load, list, promote, roll back, pin, download and delete adapters. A name may hold slashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from opsin_server.adapters.importer import ImportOptions
from opsin_server.api.middleware.paths import READ
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.routes.read_query import known_query
from opsin_server.api.routes.read_upload import read_upload
from opsin_server.api.schemas.adapters import (
    CreateAdapter,
    PinAdapter,
    PromoteVersion,
    described_adapter,
    described_change,
    described_version,
)
from opsin_server.api.services import Services, ServicesDep
from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.records import AdapterVersion

router = APIRouter()

CHUNK = 2**20
FLAGS = {"true": True, "1": True, "false": False, "0": False}


@router.api_route("/v1/adapters", methods=READ)
async def list_adapters(services: ServicesDep) -> dict[str, Any]:
    names = sorted(services.adapters.catalogue.snapshot.adapters)
    return {"object": "list", "data": [_described(name, services) for name in names]}


@router.post("/v1/adapters")
async def create_adapter(request: Request, services: ServicesDep) -> Response:
    """A multipart upload of an archive, or JSON that names a directory below --adapter-dir."""
    services.check_open()
    adapters = services.adapters
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        async with read_upload(request, adapters.scratch, adapters.max_bytes, "--max-adapter-bytes") as upload:
            name, options = _fields(upload.fields)
            version = await adapters.upload(name, upload.file, options)
    else:
        body = parse(CreateAdapter, await read_body(request, services.config.max_body_bytes))
        version = await adapters.load_confined(body.name, body.path, ImportOptions(body.promote, body.force))
    return JSONResponse(_loaded(version, services), 201)


def _fields(fields: Mapping[str, str]) -> tuple[str, ImportOptions]:
    if unknown := next((name for name in fields if name not in ("name", "promote", "force")), None):
        message = f"Unrecognized request argument supplied: {unknown[:100]}"
        raise BadRequest(message, param=unknown[:100], code="unknown_parameter")
    if "name" not in fields:
        raise BadRequest("Missing required parameter: 'name'", param="name", code="missing_required_parameter")
    return fields["name"], ImportOptions(_flag(fields, "promote", "true"), _flag(fields, "force", "false"))


def _flag(fields: Mapping[str, str], name: str, default: str) -> bool:
    if (text := fields.get(name, default).lower()) not in FLAGS:
        raise BadRequest(f"Invalid value for '{name}': it must be true or false", param=name, code="invalid_value")
    return FLAGS[text]


def _loaded(version: AdapterVersion, services: Services) -> dict[str, Any]:
    current = services.adapters.catalogue.snapshot.adapters[version.adapter].current_version == version.version
    return {
        "object": "adapter.version",
        "adapter": version.adapter,
        **described_version(version, current=current),
    }


def _described(name: str, services: Services) -> dict[str, Any]:
    catalogue = services.adapters.catalogue
    if name not in catalogue.snapshot.adapters:
        raise NotFound(f"There is no adapter '{name[:200]}'", param="name", code="adapter_not_found")
    return described_adapter(name, catalogue, services.engine.adapters)


@router.post("/v1/adapters/{name:path}/promote")
async def promote(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = parse(PromoteVersion, await read_body(request, services.config.max_body_bytes))
    return described_change(await services.adapters.promote(name, body.version))


@router.post("/v1/adapters/{name:path}/rollback")
async def roll_back(name: str, services: ServicesDep) -> dict[str, Any]:
    return described_change(await services.adapters.roll_back(name))


@router.post("/v1/adapters/{name:path}/pin")
async def pin(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await read_body(request, services.config.max_body_bytes)
    return described_change(await services.adapters.pin(name, parse(PinAdapter, body or b"{}").pinned))


@router.api_route("/v1/adapters/{name:path}/download", methods=READ)
async def download(name: str, request: Request, services: ServicesDep) -> Response:
    """A tar of the files that PEFT reads, as they were loaded."""
    catalogue, number = services.adapters.catalogue, _number(request)
    if name not in catalogue.snapshot.adapters:
        raise NotFound(f"There is no adapter '{name[:200]}'", param="name", code="adapter_not_found")
    try:
        wanted = catalogue.find(name if number is None else f"{name}@v{number}")
    except NotFound as error:
        error.param = "name" if number is None else "version"
        raise
    assert wanted is not None
    archive = await asyncio.to_thread(services.adapters.archived, wanted)
    file = f"{Path(name).name}-v{wanted.version}.tar".encode("ascii", "replace").decode().replace('"', "_")
    headers = {"content-disposition": f'attachment; filename="{file}"'}
    return StreamingResponse(_read(archive), media_type="application/x-tar", headers=headers)


async def _read(archive: IO[bytes]) -> AsyncIterator[bytes]:
    with archive:
        while chunk := await asyncio.to_thread(archive.read, CHUNK):
            yield chunk


@router.api_route("/v1/adapters/{name:path}", methods=READ)
async def retrieve_adapter(name: str, services: ServicesDep) -> dict[str, Any]:
    return _described(name, services)


@router.delete("/v1/adapters/{name:path}")
async def delete_adapter(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """All of it, or one of its versions that is not the current one."""
    if (number := _number(request)) is None:
        await services.adapters.unload(name)
        return {"object": "adapter", "id": name, "deleted": True}
    await services.adapters.delete_version(name, number)
    return {"object": "adapter.version", "id": f"{name}@v{number}", "deleted": True}


def _number(request: Request) -> int | None:
    """The version of a query, 3 or v3. (One of another name is refused: it would act on all versions.)"""
    if (version := known_query(request, ("version",)).get("version")) is None:
        return None
    digits = version.removeprefix("v")
    if not (digits.isascii() and digits.isdigit() and 0 < len(digits) < 10):
        raise BadRequest("Invalid value for 'version': it must be a number", param="version", code="invalid_value")
    return int(digits)
