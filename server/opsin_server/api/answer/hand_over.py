"""What every kind of request is answered with: how its tokens are drawn, what they are held to, and the engine's
streams as choices."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from opsin_plugins.spec.visual_items import visible_images
from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.adapter_use import AdapterUse
from opsin_server.api.answer.generation import ChoiceStream
from opsin_server.api.answer.output_text import OutputText
from opsin_server.api.answer.prompt_scores import PromptScores
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.sampling_defaults import SamplingDefaults
from opsin_server.api.schemas.sampling_fields import SamplingFields
from opsin_server.api.services import Services
from opsin_server.errors import BadRequest
from opsin_server.guided.grammar import Grammar, behind_blank, behind_thoughts
from opsin_server.ipc.messages import Sampling, Submit, arrays_of, describe
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.encode_prompt import Prompt, PromptEncoder
from opsin_server.text.reasoning import ReasoningReader
from opsin_server.text.stops import StopFinder
from opsin_server.text.tokenizer import Tokenizer
from opsin_server.text.tool_reader import ToolCallReader

MIDDLE = "x"  # what stands before an answer that continues a text


def hand_over(
    message: Submit,
    prompt: Prompt,
    services: Services,
    held: AsyncExitStack,
    new_text: Callable[[], OutputText],
    new_calls: Callable[[], ToolCallReader | None] = lambda: None,
    new_thoughts: Callable[[], ReasoningReader | None] = lambda: None,
    first: int = 0,
    scores: PromptScores | None = None,
) -> list[ChoiceStream]:
    """The choices of a prompt that the engine has now, numbered from `first`. held: its closing ends
    their work. scores: of the prompt, which the first of them fills."""
    streams = services.engine.submit_choices(message, arrays_of(prompt.ids, prompt.positions, prompt.items))
    choices = []
    for index, stream in enumerate(streams, first):
        held.callback(stream.cancel)
        readers = new_text(), new_calls(), new_thoughts()
        choices.append(ChoiceStream(index, stream, *readers, first_of_prompt=index == first, prompt=scores))
    return choices


def submission(
    body: SamplingFields,
    how: Sampling,
    prompt: Prompt,
    max_tokens: int,
    guided: str | None,
    adapter: ServedAdapter | None,
    services: Services,
    kind: str,
    prompt_logprobs: int,
) -> Submit:
    """kind: what the answer's id begins with."""
    return Submit(
        request_id=f"{kind}{secrets.token_hex(16)}",  # a key in the engine: never the client's own id
        sampling=how,
        max_tokens=max_tokens,
        eos=(*(() if body.ignore_eos else services.encoder.ends), *(body.stop_token_ids or ())),
        delta=prompt.delta,
        axes=len(prompt.positions),
        spans=prompt.spans,
        items=describe(prompt.items),
        visible=visible_images(prompt.visible),
        adapter=None if adapter is None else adapter.ref,
        guided=guided,
        min_tokens=body.min_tokens or 0,
        choices=body.n or 1,
        priority=body.priority or 0,
        prompt_logprobs=prompt_logprobs,
    )


def sampling(body: SamplingFields, default: SamplingDefaults, top_logprobs: int) -> Sampling:
    """default: for what the request leaves out. A request without a seed gets one of its own. top_logprobs: -1 for
    none, not even the drawn token's."""
    return Sampling(
        temperature=default.temperature if body.temperature is None else body.temperature,
        top_p=default.top_p if body.top_p is None else body.top_p,
        top_k=default.top_k if body.top_k is None else max(0, body.top_k),
        min_p=default.min_p if body.min_p is None else body.min_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        top_logprobs=top_logprobs,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=default.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
    )


def adapter_use(
    adapter: ServedAdapter | None, log: RequestLog, services: Services, held: AsyncExitStack
) -> AdapterUse | None:
    """held: its closing counts the end."""
    if adapter is None:
        return None
    return held.enter_context(AdapterUse(adapter.name, services.metrics.adapters, log.usage))


def fingerprint(version: str, adapter: ServedAdapter | None) -> str:
    """OpenAI's system_fingerprint: another one for each version of an adapter. version: the model's."""
    return version if adapter is None else f"{version}-{adapter.digest[:12]}"


async def checked_grammar(grammar: Grammar, services: Services) -> str:
    """In the engine's form. Raises BadRequest."""
    if not services.encoder.ends:
        raise BadRequest(
            "This model has no token that ends an answer: none can be held to a grammar", param=grammar.param
        )
    return await services.grammars.check(grammar)


def in_its_place(grammar: str, continues: bool, encoder: PromptEncoder, thinks: bool) -> str:
    """What the engine holds the whole answer to: before what the grammar is about, a model may think, and
    SentencePiece may write a blank. continues: the answer goes on where a text ends. thinks: the prompt has begun to
    think."""
    if continues:
        return grammar
    if encoder.reasoning is not None:
        begin, end = map(encoder.tokenizer.split_special, (encoder.reasoning.begin, encoder.reasoning.end))
        grammar = behind_thoughts(grammar, begin, end, thinks)
    return behind_blank(grammar) if encoder.tokenizer.drops_first_blank else grammar


def special_in(tokenizer: Tokenizer, texts: Iterable[str]) -> frozenset[int]:
    """Special tokens that stand around what is read out of an answer: its text has their strings, for who reads."""
    return frozenset(part for text in texts for part in tokenizer.split_special(text) if isinstance(part, int))


def check_tokens(tokens: Iterable[str | int] | None, vocabulary: int, param: str = "logit_bias") -> None:
    """Raises BadRequest for a token that this model cannot draw: ids are of one tokenizer, and another model's would be
    other words."""
    for token in tokens or ():
        if int(token) >= vocabulary:
            raise BadRequest(
                f"Invalid value for '{param}': there is no token {token}; this model's are 0 to {vocabulary - 1}",
                param=param,
                code="invalid_value",
            )


def output_text(
    tokenizer: Tokenizer,
    stops: list[str] | None,
    continues: bool,
    markers: frozenset[int] = frozenset(),
    every_logprob: bool = False,
) -> OutputText:
    """One that reads the answer's first token as the middle of a text, where it continues one: SentencePiece drops the
    blank in front of a text's first word. markers: special tokens whose strings the text has. every_logprob: as of
    `OutputText`."""
    reads = Detokenizer(tokenizer, markers)
    if continues:
        reads.push(tokenizer.encode_plain(MIDDLE))
    return OutputText(reads, StopFinder(stops or ()), tokenizer, every_logprob)
