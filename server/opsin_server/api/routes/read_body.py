"""From a request's bytes to a checked model: bounded in bytes, values and time, and wrong in words when it is wrong."""

from __future__ import annotations

import asyncio
import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import Message

from opsin_server.api.cancellation import ClientGone
from opsin_server.api.schemas.chat_request import ChatRequest, DeploymentRequest
from opsin_server.api.services import services_of
from opsin_server.chat.describe_error import describe, path
from opsin_server.chat.fields import NOT_FINITE
from opsin_server.chat.finite import place_of_nonfinite
from opsin_server.errors import BadRequest, OpsinError, TooLarge

IDLE_SECONDS = 30.0  # without a byte of the body
SLOWEST = 10_000  # bytes a second, of a whole body
# A hostile 30 MB of "[]," is 10 million values: 6 s of parsing with the interpreter's lock held, and 1.5 GB [measured].
# No prompt needs so many commas and brackets: this many take 0.3 s at worst.
MAX_SEPARATORS = 100_000
SMALL = 100_000  # bytes that cannot hold more

Model = TypeVar("Model", bound=BaseModel)


class BodyTimeout(OpsinError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


async def read_body(request: Request, limit: int) -> bytearray:
    """Raises TooLarge as soon as it is known, BadRequest for another content type, BodyTimeout, ClientGone."""
    headers = request.headers
    content_type = headers.get("content-type", "application/json")
    if not re.fullmatch(r"application/(.+\+)?json", content_type.partition(";")[0].strip().lower()):
        sentence = f"The content type must be application/json, not {content_type[:100]}"
        raise BadRequest(sentence, code="unsupported_content_type")
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
        sentence = f"The body must be sent as it is, without a content encoding ({encoding[:100]})"
        raise BadRequest(sentence, code="unsupported_content_encoding")
    body = bytearray()
    async for chunk in body_chunks(request, limit, "--max-body-bytes"):
        body += chunk
    return body.removeprefix(BOM_UTF8)


async def body_chunks(request: Request, limit: int, option: str) -> AsyncIterator[bytes]:
    """As they come. option: what sets the limit. Raises TooLarge as soon as it is known, BodyTimeout, ClientGone."""
    length = request.headers.get("content-length", "0")
    if int(length) > limit:
        raise _too_large(limit, length, option)
    received, more, began = 0, True, time.monotonic()
    while more:
        message = await _next_message(request)
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        received += len(chunk)
        more = message.get("more_body", False)
        if received > limit:
            raise _too_large(limit, f"more than {limit}", option)
        if time.monotonic() - began > IDLE_SECONDS + received / SLOWEST:
            raise BodyTimeout(f"The body comes more slowly than {SLOWEST:,} bytes a second")
        yield chunk


async def _next_message(request: Request) -> Message:
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await request.receive()
    except TimeoutError:
        raise BodyTimeout(f"No byte of the body came within {IDLE_SECONDS:.0f} seconds") from None


def _too_large(limit: int, size: str, option: str) -> TooLarge:
    return TooLarge(f"The body has {size} bytes; the limit is {limit} bytes ({option})")


def parse(model: type[Model], body: bytes | bytearray, separators: int = MAX_SEPARATORS) -> Model:
    """Raises BadRequest in the words of the first error. separators: commas and brackets, at most; of brackets alone no
    more than anywhere."""
    if len(body) > SMALL:
        brackets = body.count(b"[") + body.count(b"{")
        if brackets + body.count(b",") > separators:
            raise BadRequest(f"The body has more than {separators} commas and brackets")
        if brackets > MAX_SEPARATORS:
            raise BadRequest(f"The body has more than {MAX_SEPARATORS} brackets")
    try:
        made = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _of_another_encoding(body) or describe(first) from None
    if (place := place_of_nonfinite(from_json(body))) is not None:  # (beside typed numbers, which refuse it themselves)
        param = path(place)
        raise BadRequest(f"Invalid value for '{param}': {NOT_FINITE}", param=param, code="invalid_value")
    return made


def _of_another_encoding(body: bytes | bytearray) -> BadRequest | None:
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:2]:
        return BadRequest("The body is in UTF-16 or UTF-32; JSON is sent in UTF-8", code="invalid_json")
    return None


async def _chat_body(request: Request) -> ChatRequest:
    return parse(ChatRequest, await open_body(request))


async def _deployment_body(request: Request) -> ChatRequest:
    """With the model that the address names."""
    body = parse(DeploymentRequest, await open_body(request))
    return body.model_copy(update={"model": request.path_params["name"]})


async def open_body(request: Request) -> bytearray:
    """Raises Unavailable before a byte of the body is read, if no work is taken."""
    services = await services_of(request)  # not a dependency of its own: FastAPI takes 0.1 ms to solve one
    services.check_open()
    return await read_body(request, services.config.max_body_bytes)


ChatBody = Annotated[ChatRequest, Depends(_chat_body)]
DeploymentBody = Annotated[ChatRequest, Depends(_deployment_body)]
