"""From a checked request to an answer that the engine is working on: pictures, prompt, limits, sampling."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from msgspec.structs import replace

from opsin_plugins.spec import ImageBudget
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.adapter_use import AdapterUse
from opsin_server.api.answer.answer_tools import answer_tools, prompt_options
from opsin_server.api.answer.generation import ChoiceStream, Generation, Identity
from opsin_server.api.answer.keep_chat import keeper
from opsin_server.api.answer.output_text import OutputText
from opsin_server.api.answer.structured_output import grammar_of
from opsin_server.api.engine_status import facts
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.sampling_defaults import SamplingDefaults
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.services import Services
from opsin_server.chat.to_messages import to_messages
from opsin_server.errors import BadRequest
from opsin_server.guided.grammar import Grammar, behind_blank, behind_thoughts
from opsin_server.ipc.messages import AdapterRef, Sampling, Submit, arrays_of, describe
from opsin_server.media.load_images import load_images
from opsin_server.text.conversation import Message, image_parts, texts
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.encode_prompt import Prompt, PromptEncoder
from opsin_server.text.reasoning import ReasoningReader
from opsin_server.text.stops import StopFinder
from opsin_server.text.tokenizer import Tokenizer

FAR_TOO_LONG = 4  # times what a context of the longest tokens could hold


async def submit(
    body: ChatRequest, adapter: ServedAdapter | None, log: RequestLog, services: Services, held: AsyncExitStack
) -> Generation:
    """Loads the images, encodes the prompt, checks that it fits, and hands it to the engine. adapter: None is the base
    model. held: what its closing gives back."""
    keep = keeper(body, services)
    log.model, log.adapter = body.model, None if adapter is None else adapter.label
    engine = facts(services.engine)
    context = engine.max_context
    messages = to_prompt(body, engine.max_image_tokens, None if adapter is None else adapter.max_pixels)
    services.encoder.check(messages)
    check_length(messages, services.encoder.tokenizer.longest_token, context)
    check_bias(body, services.encoder.vocabulary)
    tools = answer_tools(body, services.encoder)
    grammar = grammar_of(body)
    if tools is not None:
        grammar = tools.grammar(services.encoder.tokenizer, grammar)
    checked = None if grammar is None else await checked_grammar(grammar, services)
    images = image_parts(messages)
    media, params = services.config.media, [image.param for image in images]
    pixels = await load_images([image.source for image in images], media, params, files=services.files.read_image)
    prompt = await services.encode(messages, pixels, bool(body.continue_final_message), prompt_options(body))
    log.usage.prompt_tokens, log.usage.image_tokens = len(prompt.ids), image_tokens(prompt)
    max_tokens = room(prompt, body, context)
    thinks = services.encoder.thinks_already(prompt)
    guided = None if checked is None else in_its_place(checked, body, services.encoder, thinks)
    eos = (*(() if body.ignore_eos else services.encoder.ends), *(body.stop_token_ids or ()))
    ref = None if adapter is None else adapter.ref
    message = submission(sampling(body, services.sampling), prompt, max_tokens, eos, ref, body.priority or 0)
    message = replace(message, guided=guided, min_tokens=body.min_tokens or 0, choices=body.n or 1)
    streams = services.engine.submit_choices(message, arrays_of(prompt.ids, prompt.positions, prompt.items))
    tokenizer = services.encoder.tokenizer
    reasoning = None if body.continue_final_message else services.encoder.reasoning
    markers = special_in(tokenizer, () if tools is None else tools.marks)
    markers |= special_in(tokenizer, () if reasoning is None else (reasoning.begin, reasoning.end))
    choices = []
    for index, stream in enumerate(streams):
        held.callback(stream.cancel)
        text = OutputText(detokenizer(tokenizer, body, markers), StopFinder(body.stop or ()), tokenizer)
        calls = None if tools is None else tools.reader()
        thoughts = None if reasoning is None else ReasoningReader(reasoning, thinks)
        choices.append(ChoiceStream(index, stream, text, calls, thoughts))
    identity = Identity(message.request_id, body.model, fingerprint(services.version, adapter))
    use = (
        None if adapter is None else held.enter_context(AdapterUse(adapter.name, services.metrics.adapters, log.usage))
    )
    return Generation(identity, choices, bool(body.logprobs), log.usage, log.started, services.metrics, use, keep)


def fingerprint(version: str, adapter: ServedAdapter | None) -> str:
    """OpenAI's system_fingerprint: another one for each version of an adapter. version: the model's."""
    return version if adapter is None else f"{version}-{adapter.digest[:12]}"


def check_length(messages: Sequence[Message], longest_token: int, context: int) -> None:
    """Refuses what cannot fit by far, before it is fetched or tokenized (seconds a megabyte). What is nearer to the
    limit is tokenized, and refused with exact numbers. Raises BadRequest."""
    size = sum(map(len, texts(messages)))
    if size > FAR_TOO_LONG * context * longest_token:
        raise BadRequest(
            f"The model's context holds {context} tokens, at most {context * longest_token:,} characters; the messages "
            f"have {size:,}. Shorten them",
            param="messages",
            code="context_length_exceeded",
        )


async def checked_grammar(grammar: Grammar, services: Services) -> str:
    """In the engine's form. Raises BadRequest."""
    if not services.encoder.ends:
        raise BadRequest(
            "This model has no token that ends an answer: none can be held to a grammar", param=grammar.param
        )
    return await services.grammars.check(grammar)


def in_its_place(grammar: str, body: ChatRequest, encoder: PromptEncoder, thinks: bool) -> str:
    """What the engine holds the whole answer to: before what the grammar is about, a model may think, and
    SentencePiece may write a blank. thinks: the prompt has begun to think."""
    if body.continue_final_message:
        return grammar
    if encoder.reasoning is not None:
        begin, end = map(encoder.tokenizer.split_special, (encoder.reasoning.begin, encoder.reasoning.end))
        grammar = behind_thoughts(grammar, begin, end, thinks)
    return behind_blank(grammar) if encoder.tokenizer.drops_first_blank else grammar


def special_in(tokenizer: Tokenizer, texts: Iterable[str]) -> frozenset[int]:
    """Special tokens that stand around what is read out of an answer: its text has their strings, for who reads."""
    return frozenset(part for text in texts for part in tokenizer.split_special(text) if isinstance(part, int))


def check_bias(body: ChatRequest, vocabulary: int) -> None:
    """Raises BadRequest for a token that this model cannot draw: ids are of one tokenizer, and another model's would
    bias other words."""
    for token in body.logit_bias or ():
        if int(token) >= vocabulary:
            raise BadRequest(
                f"Invalid value for 'logit_bias': there is no token {token}; this model's are 0 to {vocabulary - 1}",
                param="logit_bias",
                code="invalid_value",
            )


def detokenizer(tokenizer: Tokenizer, body: ChatRequest, markers: frozenset[int] = frozenset()) -> Detokenizer:
    """One that reads the answer's first token as the middle of a text, where it continues one: SentencePiece drops the
    blank in front of a text's first word. markers: special tokens whose strings the text has."""
    reads = Detokenizer(tokenizer, markers)
    if body.continue_final_message:
        reads.push(tokenizer.encode_plain("x"))
    return reads


def submission(
    how: Sampling,
    prompt: Prompt,
    max_tokens: int,
    eos: tuple[int, ...],
    adapter: AdapterRef | None = None,
    priority: int = 0,
) -> Submit:
    return Submit(
        request_id=f"chatcmpl-{secrets.token_hex(16)}",  # a key in the engine: never the client's own id
        sampling=how,
        max_tokens=max_tokens,
        eos=eos,
        delta=prompt.delta,
        axes=len(prompt.positions),
        spans=prompt.spans,
        items=describe(prompt.items),
        visible=visible_images(prompt.visible),
        adapter=adapter,
        priority=priority,
    )


def sampling(body: ChatRequest, default: SamplingDefaults) -> Sampling:
    """default: for what the request leaves out. A request without a seed gets one of its own."""
    return Sampling(
        temperature=default.temperature if body.temperature is None else body.temperature,
        top_p=default.top_p if body.top_p is None else body.top_p,
        top_k=default.top_k if body.top_k is None else max(0, body.top_k),
        min_p=default.min_p if body.min_p is None else body.min_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else -1,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=default.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
    )


def image_tokens(prompt: Prompt) -> int:
    return sum(span.length for span in prompt.spans)


def room(prompt: Prompt, body: ChatRequest, context: int) -> int:
    """How many tokens the answer may have. Raises BadRequest with the numbers when prompt and answer do not fit."""
    length, wanted = len(prompt.ids), body.output_limit
    if wanted is not None and length < context < length + wanted:
        raise BadRequest(
            f"The model's context holds {context} tokens and the messages have {length}: the answer may have at most "
            f"{context - length}, not {wanted}",
            param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
            code="context_length_exceeded",
        )
    if length + (wanted or 1) > context:
        raise BadRequest(
            f"The model's context holds {context} tokens; the messages have {length}"
            f"{_of_images(prompt, wanted, context)} and the answer may have {wanted or 'at least 1'}. "
            "Shorten the messages or the answer",
            param="messages",
            code="context_length_exceeded",
        )
    return wanted or context - length


def _of_images(prompt: Prompt, wanted: int | None, context: int) -> str:
    """How much of a prompt that is too long its images are, and what would fit."""
    images, count = image_tokens(prompt), len(prompt.items)
    if not images:
        return ""
    left = context - (wanted or 1) - (len(prompt.ids) - images)
    per_image = max(0, left) // count
    fit = f"{count} of at most {per_image} tokens" if per_image else "none beside this text"
    largest = max(span.length for span in prompt.spans)
    return f" ({images} of them for {count} images, the largest {largest}; there is room for {fit})"


def to_prompt(request: ChatRequest, max_image_tokens: int | None, max_pixels: int | None = None) -> list[Message]:
    """The same conversation in the prompt code's words. max_pixels: of a picture where the request does not say, as an
    adapter was trained."""
    options = request.mm_processor_kwargs
    said = None if options is None else options.max_pixels
    default = ImageBudget(max_pixels if said is None else said, max_image_tokens)
    return to_messages(request.messages, default)
