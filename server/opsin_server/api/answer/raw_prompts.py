"""Prompts as clients write them out themselves: texts and ids, without a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from opsin_server.api.answer.submit import check_size
from opsin_server.api.engine_status import facts
from opsin_server.api.services import Services
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.raw_prompt import raw_ids

_T = TypeVar("_T")


async def text_ids(text: str, opening: bool, special: bool, services: Services) -> list[int]:
    """opening, special: as of `raw_ids`. Raises BadRequest."""
    tokenizer = services.encoder.tokenizer
    check_size(len(text), tokenizer.longest_token, facts(services.engine).max_context, "prompt")
    return await in_thread(lambda: raw_ids(tokenizer, text, opening, special), services)


async def raw_prompt(given: str | Sequence[int], opening: bool, special: bool, services: Services) -> Prompt:
    """Raises BadRequest."""
    ids = await text_ids(given, opening, special, services) if isinstance(given, str) else given
    return await in_thread(lambda: services.encoder.of_ids(ids, "prompt"), services)


async def in_thread(work: Callable[[], _T], services: Services) -> _T:
    return await asyncio.get_running_loop().run_in_executor(services.threads, work)
