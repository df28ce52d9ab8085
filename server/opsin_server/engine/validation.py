"""What must not reach the model: numbers, images, spans and visible images of a request that do not fit each other, or
the engine. Raises SpecError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opsin_plugins.blocks.model import Model
from opsin_plugins.spec import DecoderSpec, SpecError, TiledTowerSpec
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import Arrays, Sampling, Submit, choice_ids

MOST_LOGPROBS = 20  # as OpenAI has it
MOST_POSITIONS = 2**31 - 1
MOST_CHOICES = 16


def check_submit(
    message: Submit,
    arrays: Arrays,
    model: Model,
    scheduler: Scheduler,
    *,
    here: Mapping[str, Sequence],
    knows_tokens: bool,
    has_slots: bool,
) -> None:
    """here: by its id, what the engine has. knows_tokens: whether it was told what tokens say. has_slots: for
    adapters."""
    total, decoder = len(arrays.ids), model.spec.decoder
    if not 1 <= message.choices <= MOST_CHOICES:
        raise SpecError(f"{message.choices} choices; this engine takes 1 to {MOST_CHOICES}")
    if not here.keys().isdisjoint(choice_ids(message.request_id, message.choices)):
        raise SpecError(f"request {message.request_id} is already here")
    answers = message.pooling is None and message.max_tokens > 0
    most = scheduler.limits.max_context - answers  # (an answer has one token, at least)
    if not 0 < total <= most:
        raise SpecError(f"{total} prompt tokens; this engine takes 1 to {most}")
    check_asked_of_prompt(message)
    if arrays.ids.min() < 0 or arrays.ids.max() >= decoder.embeddings:
        raise SpecError(f"a token id is not below the number of embeddings, {decoder.embeddings}")
    if message.axes != max(1, len(decoder.rope.sections)):
        raise SpecError(f"{message.axes} position axes; the model has {max(1, len(decoder.rope.sections))}")
    if message.guided is not None and not knows_tokens:
        raise SpecError("this engine has not been told what its tokens say")
    if message.adapter is not None and not has_slots:
        raise SpecError("this engine has no slots for adapters")
    if message.max_tokens < 0 or abs(message.delta) > MOST_POSITIONS:
        raise SpecError(f"max_tokens {message.max_tokens} or delta {message.delta} is out of range")
    check_sampling(message.sampling, decoder)
    check_items(message, arrays, model, scheduler.encoder)
    check_spans(message, total)
    if model.spec.cross is not None:
        check_visible_images(message, total, scheduler.encoder)
    elif message.visible:
        raise SpecError("this model has no cross-attention")


def check_sampling(sampling: Sampling, decoder: DecoderSpec) -> None:
    """What would end a step for all that are in it, or draw from what is no distribution."""
    bias = [value for _, value in sampling.logit_bias]
    numbers = (
        sampling.temperature, sampling.top_p, sampling.min_p, sampling.frequency_penalty, sampling.presence_penalty,
        sampling.repetition_penalty, *bias,
    )  # fmt: skip
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"a number of {sampling} is not finite")
    if sampling.temperature < 0 or not 0 <= sampling.top_p <= 1 or not 0 <= sampling.min_p <= 1 or sampling.top_k < 0:
        raise SpecError(f"{sampling} is no way to draw")
    if sampling.repetition_penalty <= 0 or not -1 <= sampling.top_logprobs <= MOST_LOGPROBS:
        raise SpecError(f"repetition_penalty {sampling.repetition_penalty}, top_logprobs {sampling.top_logprobs}")
    if any(not 0 <= token < decoder.embeddings for token, _ in sampling.logit_bias):
        raise SpecError(f"a token of logit_bias is not below the number of embeddings, {decoder.embeddings}")


def check_asked_of_prompt(message: Submit) -> None:
    if not -1 <= message.prompt_logprobs <= MOST_LOGPROBS:
        raise SpecError(f"prompt_logprobs {message.prompt_logprobs} is out of range")
    if message.pooling is None:
        return
    if (message.max_tokens, message.choices, message.guided, message.prompt_logprobs) != (1, 1, None, -1):
        raise SpecError(
            "a request that is pooled draws no token: there is no grammar, no second choice, no length, and no token "
            "has a probability"
        )


def check_items(message: Submit, arrays: Arrays, model: Model, cache: EncoderCache[Any]) -> None:
    arranged = iter(arrays.arrange)
    for item in message.items:
        vision = model.spec.vision
        if vision is None:
            raise SpecError("this model takes no images")
        frames = (1,) if model.spec.video is None else (1, vision.temporal)
        if min(item.grid) < 1 or item.shape not in [(item.patches * n, vision.patch_dim) for n in frames]:
            raise SpecError(f"pixels {item.shape} do not fit grid {item.grid}")
        if isinstance(vision, TiledTowerSpec):
            _check_tiles(item, vision)
        count = model.tokens_of(item)
        if item.arranged:
            order = next(arranged)
            newline = model.spec.projector is not None and model.spec.projector.newline
            if len(order) and (order.min() < -int(newline) or order.max() >= count):
                raise SpecError(f"an image is arranged from {count} tokens, but names {order.min()} to {order.max()}")
        elif item.tokens != count:
            raise SpecError(f"pixels {item.shape} and {item.tokens} visual tokens do not fit grid {item.grid}")
        if (size := cache.size(item.tokens)) > cache.total:
            raise SpecError(
                f"an image of {item.tokens} visual tokens needs {size} encoder blocks; there are {cache.total} "
                "(--encoder-memory)"
            )
        if not 0 <= item.hidden < item.tokens:
            raise SpecError(f"{item.hidden} of {item.tokens} visual tokens are hidden")


def _check_tiles(item: Item, vision: TiledTowerSpec) -> None:
    frames, rows, columns = item.grid
    if item.tiles not in vision.arrangements or frames != item.tiles[0] * item.tiles[1]:
        raise SpecError(f"{frames} tiles that lie {item.tiles} are not an arrangement of this tower")
    if rows * columns + 1 != vision.positions:
        raise SpecError(f"a tile of {rows} x {columns} patches; this tower's have {vision.positions - 1}")


def check_spans(message: Submit, total: int) -> None:
    at = 0
    for span in message.spans:
        if span.start < at or span.start + span.length > total or not 0 <= span.item < len(message.items):
            raise SpecError(f"image span {span.start} + {span.length} does not fit a prompt of {total}")
        if span.bidirectional:
            raise SpecError("bidirectional image spans are not served by this version")
        if span.visual_mask is not None and len(span.visual_mask) != span.length:
            raise SpecError(f"{len(span.visual_mask)} marks for an image span of {span.length}")
        placeholders = span.visual_tokens
        if placeholders != message.items[span.item].tokens and not message.visible:
            raise SpecError(f"{placeholders} placeholders for {message.items[span.item].tokens} visual tokens")
        at = span.start + span.length


def check_visible_images(message: Submit, total: int, cache: EncoderCache[Any]) -> None:
    """Also that all images that a row sees at once fit into the store."""
    count, before = len(message.items), -1
    if count and not message.visible:
        raise SpecError(f"{count} images, and no row attends to them")
    for reach in message.visible:
        lo = max(reach.lo, 0)
        if not before < reach.start < total or not reach.lo >= -1 or not lo <= reach.hi <= count:
            raise SpecError(f"rows from {reach.start} on see {lo} to {reach.hi} of {count} images in {total} rows")
        before = reach.start
        group = {item.digest: item.tokens for item in message.items[lo : reach.hi]}
        if (size := sum(cache.size(tokens) for tokens in group.values())) > cache.total:
            raise SpecError(
                f"{len(group)} images that are seen together need {size} encoder blocks; there are {cache.total} "
                "(--encoder-memory)"
            )
