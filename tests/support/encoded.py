"""What the prompt code makes of a chat request, as a prompt for the models (tests/server/text holds it against
transformers')."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opsin_plugins.spec import U8, Expanded
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle


def encoded(encoder: PromptEncoder, messages: list[dict[str, Any]], images: Sequence[U8]) -> oracle.Prompt:
    request = ChatRequest.model_validate({"model": "tiny", "messages": messages})
    prompt = encoder.encode(to_prompt(request, None), list(images))
    made = Expanded(prompt.ids, prompt.spans, prompt.visible)
    rope, sizes = encoder.spec.decoder.rope, [i.shape[:2] for i in images]
    return oracle.Prompt(made, prompt.items, prompt.positions, prompt.delta, rope, sizes)
