"""Chat requests to a tiny model, and the prompt that they are for it (tests/server/text holds the prompt code against
transformers')."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletion

from opsin_plugins.spec import U8, Expanded
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle
from support.served import Served


def encoded(encoder: PromptEncoder, messages: list[dict[str, Any]], images: Sequence[U8]) -> oracle.Prompt:
    request = ChatRequest.model_validate({"model": "tiny", "messages": messages})
    prompt = encoder.encode(to_prompt(request, None), list(images))
    made = Expanded(prompt.ids, prompt.spans, prompt.visible)
    rope, sizes = encoder.spec.decoder.rope, [i.shape[:2] for i in images]
    return oracle.Prompt(made, prompt.items, prompt.positions, prompt.delta, rope, sizes)


def ask_greedily(server: Served, messages: list[dict[str, Any]], tokens: int) -> ChatCompletion:
    """So many tokens of a served tiny model, whatever they are."""
    return server.client().chat.completions.create(
        model="tiny",
        messages=messages,
        temperature=0,
        max_tokens=tokens,
        logprobs=True,
        extra_body={"ignore_eos": True},
    )
