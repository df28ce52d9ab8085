"""From a checked chat request to an answer that the engine is working on: pictures and videos, prompt, limits,
sampling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from opsin_plugins.spec import ImageBudget
from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.answer_tools import answer_tools, prompt_options
from opsin_server.api.answer.generation import Generation, Identity
from opsin_server.api.answer.hand_over import (
    adapter_use,
    check_tokens,
    checked_grammar,
    fingerprint,
    hand_over,
    in_its_place,
    output_text,
    sampling,
    special_in,
    submission,
)
from opsin_server.api.answer.keep_chat import keeper
from opsin_server.api.answer.load_visuals import load_visuals, max_video_tokens
from opsin_server.api.answer.prompt_scores import PromptScores, check_entries, prompt_tokens
from opsin_server.api.answer.structured_output import grammar_of
from opsin_server.api.engine_status import facts
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.services import Services
from opsin_server.chat.to_messages import asked_of_videos, to_messages
from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message, VideoWish, texts, visual_parts
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.reasoning import ReasoningReader

FAR_TOO_LONG = 4  # times what a context of the longest tokens could hold


async def submit(
    body: ChatRequest,
    adapter: ServedAdapter | None,
    log: RequestLog,
    services: Services,
    held: AsyncExitStack,
    kind: str = "chatcmpl-",
) -> Generation:
    """Loads the images, encodes the prompt, checks that it fits, and hands it to the engine. adapter: None is the base
    model. held: what its closing gives back. kind: what the answer's id begins with."""
    keep = keeper(body, services)
    log.model, log.adapter = body.model, None if adapter is None else adapter.label
    messages = conversation(body, adapter, services)
    check_tokens(body.logit_bias, services.encoder.vocabulary)
    check_tokens(body.stop_token_ids, services.encoder.vocabulary, "stop_token_ids")
    tokenizer, continues = services.encoder.tokenizer, bool(body.continue_final_message)
    tools = answer_tools(body, services.encoder)
    grammar = grammar_of(body)
    if tools is not None:
        grammar = tools.grammar(tokenizer, grammar)
    checked = None if grammar is None else await checked_grammar(grammar, services)
    prompt = await encoded(messages, body, services)
    log.usage.prompt_tokens, log.usage.image_tokens = len(prompt.ids), image_tokens(prompt)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = room(prompt, body.output_limit, facts(services.engine).max_context, limit)
    thinks = services.encoder.thinks_already(prompt)
    guided = None if checked is None else in_its_place(checked, continues, services.encoder, thinks)
    how = sampling(body, services.sampling, (body.top_logprobs or 0) if body.logprobs else -1)
    wanted = -1 if body.prompt_logprobs is None else body.prompt_logprobs
    check_entries([prompt], wanted)
    message = submission(body, how, prompt, max_tokens, guided, adapter, services, kind, wanted)
    scores = None if body.prompt_logprobs is None else PromptScores(prompt, services.encoder.vocabulary)
    reasoning = None if continues else services.encoder.reasoning
    markers = special_in(tokenizer, () if tools is None else tools.marks)
    markers |= special_in(tokenizer, () if reasoning is None else (reasoning.begin, reasoning.end))
    choices = hand_over(
        message,
        prompt,
        services,
        held,
        lambda: output_text(tokenizer, body.stop, continues, markers),
        lambda: None if tools is None else tools.reader(),
        lambda: None if reasoning is None else ReasoningReader(reasoning, thinks),
        scores=scores,
    )
    identity = Identity(message.request_id, body.model, fingerprint(services.version, adapter))
    use = adapter_use(adapter, log, services, held)
    about_prompt = None if scores is None else partial(prompt_tokens, scores, wanted, services)
    return Generation(
        identity, choices, bool(body.logprobs), log.usage, log.started, services.metrics, use, keep, about_prompt
    )


def conversation(body: ChatRequest, adapter: ServedAdapter | None, services: Services) -> list[Message]:
    """In the prompt code's words, with what can be refused before anything is fetched. Raises BadRequest."""
    engine = facts(services.engine)
    max_pixels = None if adapter is None else adapter.max_pixels
    messages = to_prompt(body, engine.max_image_tokens, max_pixels, max_video_tokens(engine))
    services.encoder.check(messages)
    check_length(messages, services.encoder.tokenizer.longest_token, engine.max_context)
    return messages


async def encoded(messages: Sequence[Message], body: ChatRequest, services: Services) -> Prompt:
    """With its images and videos loaded. Raises BadRequest."""
    visuals = await load_visuals(visual_parts(messages), services)
    return await services.encode(messages, visuals, bool(body.continue_final_message), prompt_options(body))


def check_length(messages: Sequence[Message], longest_token: int, context: int) -> None:
    """Raises BadRequest for a conversation that is far too long."""
    check_size(sum(map(len, texts(messages))), longest_token, context)


def check_size(size: int, longest_token: int, context: int, noun: str = "messages") -> None:
    """Refuses what cannot fit by far, before it is fetched or tokenized (seconds a megabyte). What is nearer to the
    limit is tokenized, and refused with exact numbers. noun: the field of the prompt. Raises BadRequest."""
    have = "have" if noun.endswith("s") else "has"
    if size > FAR_TOO_LONG * context * longest_token:
        raise BadRequest(
            f"The model's context holds {context} tokens, at most {context * longest_token:,} characters; the {noun} "
            f"{have} {size:,}. Shorten {'them' if have == 'have' else 'it'}",
            param=noun,
            code="context_length_exceeded",
        )


def image_tokens(prompt: Prompt) -> int:
    """All that stands for pictures and videos: marks of rows and the seconds of a video, too."""
    return sum(span.length for span in prompt.spans)


def room(prompt: Prompt, wanted: int | None, context: int, limit: str = "max_tokens", noun: str = "messages") -> int:
    """How many tokens the answer may have. Raises BadRequest with the numbers when prompt and answer do not fit.
    wanted: by the field `limit`. noun: the field of the prompt."""
    length, have = len(prompt.ids), "have" if noun.endswith("s") else "has"
    if wanted is not None and length < context < length + wanted:
        raise BadRequest(
            f"The model's context holds {context} tokens and the {noun} {have} {length}: the answer may have at most "
            f"{context - length}, not {wanted}",
            param=limit,
            code="context_length_exceeded",
        )
    if length + (1 if wanted is None else wanted) > context:
        raise BadRequest(
            f"The model's context holds {context} tokens; the {noun} {have} {length}"
            f"{_of_images(prompt, wanted, context)} and the answer may have {wanted or 'at least 1'}. "
            f"Shorten the {noun} or the answer",
            param=noun,
            code="context_length_exceeded",
        )
    return context - length if wanted is None else wanted


def _of_images(prompt: Prompt, wanted: int | None, context: int) -> str:
    """How much of a prompt that is too long its images are, and what would fit."""
    images, count = image_tokens(prompt), len(prompt.items)
    if not images:
        return ""
    left = context - (wanted or 1) - (len(prompt.ids) - images)
    per_image = max(0, left) // count
    fit = f"{count} of at most {per_image} tokens" if per_image else "none beside this text"
    largest = max(span.length for span in prompt.spans)
    noun = "images" if all(item.video is None for item in prompt.items) else "images and videos"
    return f" ({images} of them for {count} {noun}, the largest {largest}; there is room for {fit})"


def to_prompt(
    request: ChatRequest,
    max_image_tokens: int | None,
    max_pixels: int | None = None,
    max_video_tokens: int | None = None,
) -> list[Message]:
    """The same conversation in the prompt code's words. max_pixels: of a picture where the request does not say, as an
    adapter was trained. max_video_tokens: for how many of a video there is room."""
    options = request.mm_processor_kwargs
    said = None if options is None else options.max_pixels
    default = ImageBudget(max_pixels if said is None else said, max_image_tokens)
    return to_messages(request.messages, default, of_videos=_of_videos(request, max_video_tokens))


def _of_videos(request: ChatRequest, max_tokens: int | None) -> VideoWish:
    """What processors are told goes before what readers of files are told."""
    wish = VideoWish(max_tokens=max_tokens)
    if request.media_io_kwargs is not None and (read := request.media_io_kwargs.video) is not None:
        wish = asked_of_videos(read, wish, "media_io_kwargs.video")
    if request.mm_processor_kwargs is None:
        return wish
    return asked_of_videos(request.mm_processor_kwargs, wish, "mm_processor_kwargs")
