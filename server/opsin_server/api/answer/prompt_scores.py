"""How likely the model finds a prompt's own tokens: as the engine says it, and in the two forms in which clients read
it (vLLM's, and OpenAI's where a completion begins with its prompt)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from opsin_server.api.answer.output_text import UNLIKELY
from opsin_server.api.schemas.completion_response import TextLogprobs
from opsin_server.api.schemas.prompt_logprobs import PromptToken, PromptTokens
from opsin_server.api.services import Services
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import PromptLogprobs
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.tokenizer import Tokenizer

MAX_ENTRIES = 2**19  # log probabilities about the prompts of a request: what they take as JSON is some 40 MB


def check_entries(prompts: Sequence[Prompt], top: int) -> None:
    """Raises BadRequest."""
    if (entries := (1 + top) * sum(len(prompt.ids) for prompt in prompts)) > MAX_ENTRIES:
        raise BadRequest(
            f"These would be {entries:,} log probabilities about the prompt, of which a request may have "
            f"{MAX_ENTRIES:,}: ask for fewer others, or send shorter or fewer prompts",
            param="prompt_logprobs",
        )


@dataclass(frozen=True)
class ScoredToken:
    """likeliest: ids and log probabilities of what else could stand there, most likely first."""

    token: int
    rank: int
    logprob: float
    likeliest: list[tuple[int, float]]


class PromptScores:
    """Of one prompt; complete before anything of its answer comes. A picture's places are no tokens: nothing is said of
    them, as of the first token, before which there is nothing."""

    def __init__(self, prompt: Prompt, vocabulary: int) -> None:
        """vocabulary: tokens that can be drawn."""
        self.ids = prompt.ids.tolist()
        self._unsaid = {0, *(place for place, token in enumerate(self.ids) if token >= vocabulary)}
        for span in prompt.spans:
            self._unsaid.update(filter(span.is_visual, range(span.start, span.start + span.length)))
        self._parts: list[PromptLogprobs] = []

    def add(self, part: PromptLogprobs) -> None:
        self._parts.append(part)

    def tokens(self, top: int) -> Iterator[ScoredToken | None]:
        """One of each token of the prompt. top: likeliest ones that are wanted."""
        yield from [None] * min(1, len(self.ids))
        for part in self._parts:
            shape = 1 + part.top, -1
            whole = np.frombuffer(part.whole, "<i4").reshape(shape)[: 1 + top].T.tolist()
            real = np.maximum(np.frombuffer(part.real, "<f4").reshape(shape)[: 1 + top], UNLIKELY).T.tolist()
            for place, (numbers, values) in enumerate(zip(whole, real, strict=True), part.first):
                others = list(zip(numbers[1:], values[1:], strict=True))
                token = ScoredToken(self.ids[place], numbers[0], values[0], others)
                yield None if place in self._unsaid else token


async def prompt_tokens(scores: PromptScores, top: int, services: Services) -> PromptTokens:
    """vLLM's form."""
    work = partial(by_token_id, scores, top, services.encoder.tokenizer)
    return await asyncio.get_running_loop().run_in_executor(services.threads, work)


async def echoed_prompt(scores: PromptScores, top: int, services: Services) -> TextLogprobs:
    """OpenAI's form, of a prompt that stands in front of the answer's text."""
    work = partial(echoed, scores, top, services.encoder.tokenizer)
    return await asyncio.get_running_loop().run_in_executor(services.threads, work)


def by_token_id(scores: PromptScores, top: int, tokenizer: Tokenizer) -> PromptTokens:
    """Of each token the likeliest ones and its own, by their ids."""
    found: PromptTokens = []
    for scored in scores.tokens(top):
        if scored is None:
            found.append(None)
            continue
        entry = {str(scored.token): PromptToken(scored.logprob, scored.rank, tokenizer.token_text(scored.token))}
        for rank, (token, logprob) in enumerate(scored.likeliest, 1):
            entry.setdefault(str(token), PromptToken(logprob, rank, tokenizer.token_text(token)))
        found.append(entry)
    return found


def echoed(scores: PromptScores, top: int, tokenizer: Tokenizer) -> TextLogprobs:
    found, reads, written = TextLogprobs([], [], [], []), Detokenizer(tokenizer), 0
    for token, scored in zip(scores.ids, scores.tokens(top), strict=True):
        found.tokens.append(tokenizer.token_text(token))
        found.text_offset.append(written)
        written += len(reads.push((token,)))
        found.token_logprobs.append(None if scored is None else scored.logprob)
        found.top_logprobs.append(None if scored is None else _by_text(scored, tokenizer))
    return found


def _by_text(scored: ScoredToken, tokenizer: Tokenizer) -> dict[str, float]:
    """The likeliest, and the token itself. Of those with one text, the likeliest counts."""
    found: dict[str, float] = {}
    for token, logprob in (*scored.likeliest, (scored.token, scored.logprob)):
        found.setdefault(tokenizer.token_text(token), logprob)
    return found
