"""POST /tokenize and /detokenize, as vLLM has them: what a prompt is to the model, and back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.raw_prompts import in_thread, text_ids
from opsin_server.api.answer.submit import conversation, encoded
from opsin_server.api.engine_status import facts
from opsin_server.api.routes.chat import admitted
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.tokenize import (
    SEPARATORS,
    Detokenized,
    DetokenizeRequest,
    TokenizeChatRequest,
    Tokenized,
    TokenizeTextRequest,
)
from opsin_server.api.services import Services, ServicesDep
from opsin_server.errors import BadRequest

router = APIRouter()


class _Named(msgspec.Struct):
    """Whether a body has a prompt, found without making anything of the rest."""

    prompt: msgspec.Raw = msgspec.Raw()


async def _tokenize_body(request: Request) -> TokenizeTextRequest | TokenizeChatRequest:
    body = await open_body(request)
    try:
        has_prompt = bytes(msgspec.json.decode(body, type=_Named).prompt) not in (b"", b"null")
    except msgspec.MsgspecError:
        has_prompt = b'"messages"' not in body  # (what is no JSON object is refused below)
    return parse(TokenizeTextRequest, body) if has_prompt else parse(TokenizeChatRequest, body)


async def _detokenize_body(request: Request) -> DetokenizeRequest:
    return parse(DetokenizeRequest, await open_body(request), SEPARATORS)


TokenizeBody = Annotated[TokenizeTextRequest | TokenizeChatRequest, Depends(_tokenize_body)]
DetokenizeBody = Annotated[DetokenizeRequest, Depends(_detokenize_body)]


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request, services: ServicesDep) -> Response:
    """Special tokens in a `prompt` are text, unless `parse_special` says otherwise; a picture has all its tokens."""
    async with AsyncExitStack() as held, admitted(services.admission, held).attended(request.receive):
        ids = await _ids(body, services)
    tokenizer = services.encoder.tokenizer
    strings = [tokenizer.piece(i) for i in ids] if body.return_token_strs else None
    found = Tokenized(len(ids), facts(services.engine).max_context, ids, strings)
    return Response(encode(found), media_type="application/json")


async def _ids(body: TokenizeTextRequest | TokenizeChatRequest, services: Services) -> list[int]:
    adapter = await services.adapters.resolve(body.model or services.names[0])
    if isinstance(body, TokenizeTextRequest):
        return await text_ids(body.prompt, body.add_special_tokens is not False, bool(body.parse_special), services)
    prompt = await encoded(conversation(body, adapter, services), body, services)
    return [int(i) for i in prompt.ids]


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request, services: ServicesDep) -> Response:
    """Special tokens have their strings."""
    tokenizer = services.encoder.tokenizer
    async with AsyncExitStack() as held, admitted(services.admission, held).attended(request.receive):
        await services.adapters.resolve(body.model or services.names[0])
        if unknown := next((token for token in body.tokens if token >= tokenizer.vocab_size), None):
            raise BadRequest(
                f"There is no token {unknown}; this model's are 0 to {tokenizer.vocab_size - 1}", param="tokens"
            )
        text = await in_thread(lambda: tokenizer.decode(body.tokens, special=True), services)
    return Response(encode(Detokenized(text)), media_type="application/json")
