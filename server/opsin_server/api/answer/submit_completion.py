"""From a checked /v1/completions request to answers that the engine is working on: each prompt is a request there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.generation import ChoiceStream, Generation, Identity
from opsin_server.api.answer.hand_over import (
    adapter_use,
    check_tokens,
    checked_grammar,
    fingerprint,
    hand_over,
    output_text,
    sampling,
    submission,
)
from opsin_server.api.answer.prompt_scores import PromptScores, check_entries
from opsin_server.api.answer.raw_prompts import raw_prompt
from opsin_server.api.answer.structured_output import grammar_of
from opsin_server.api.answer.submit import room
from opsin_server.api.engine_status import facts
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.schemas.completion_request import CompletionRequest
from opsin_server.api.services import Services
from opsin_server.errors import BadRequest
from opsin_server.text.encode_prompt import Prompt


async def submit_completion(
    body: CompletionRequest, adapter: ServedAdapter | None, log: RequestLog, services: Services, held: AsyncExitStack
) -> Generation:
    """Encodes the prompts, checks that each fits, and hands them to the engine: the answers to the first come first.
    adapter, held: as of `submit`."""
    log.model, log.adapter = body.model, None if adapter is None else adapter.label
    encoder, context = services.encoder, facts(services.engine).max_context
    check_tokens(body.logit_bias, encoder.vocabulary)
    check_tokens(body.stop_token_ids, encoder.vocabulary, "stop_token_ids")
    grammar = grammar_of(body)
    guided = None if grammar is None else await checked_grammar(grammar, services)
    opening, special = body.add_special_tokens is not False, bool(body.parse_special)
    prompts: list[Prompt] = []
    wanted_prompts: Sequence[str | list[int]] = body.prompt
    for index, given in enumerate(wanted_prompts):  # one that does not fit is refused before the next is tokenized
        try:
            prompt = await raw_prompt(given, opening, special, services)
            room(prompt, body.output_limit, context, noun="prompt")
        except BadRequest as error:
            if error.param == "prompt" and len(body.prompt) > 1:
                error.param = f"prompt[{index}]"
            raise
        prompts.append(prompt)
    log.usage.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    choices: list[ChoiceStream] = []
    check_entries(prompts, wanted := body.asks_of_prompt)
    for prompt in prompts:
        how = sampling(body, services.sampling, -1 if body.logprobs is None else body.logprobs)
        message = submission(body, how, prompt, body.output_limit, guided, adapter, services, "cmpl-", wanted)
        choices += hand_over(
            message,
            prompt,
            services,
            held,
            lambda: output_text(encoder.tokenizer, body.stop, True, every_logprob=bool(body.echo)),
            first=len(choices),
            scores=None if wanted < 0 else PromptScores(prompt, encoder.vocabulary),
        )
    identity = Identity(message.request_id, body.model, fingerprint(services.version, adapter))
    use = adapter_use(adapter, log, services, held)
    return Generation(identity, choices, body.logprobs is not None, log.usage, log.started, services.metrics, use)


def echoes(body: CompletionRequest, services: Services) -> list[str]:
    """What the text of each answer begins with."""
    decode = services.encoder.tokenizer.decode
    texts = [given if isinstance(given, str) else decode(given) for given in body.prompt] if body.echo else []
    return [text for text in texts or [""] * len(body.prompt) for _ in range(body.n or 1)]
