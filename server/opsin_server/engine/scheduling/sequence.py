"""A request inside the engine: its tokens, where its keys and values lie, and what is left to do. No torch."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from opsin_plugins.spec import I32, U8, RopeSpec, Span, VisibleImages
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import (
    AdapterRef,
    Arrays,
    Pooling,
    Sampling,
    Submit,
)


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """Rows start to stop - 1 of a sequence need an item's visual tokens; stop None: all rows of its answer, too."""

    item: int
    start: int
    stop: int | None

    def touches(self, start: int, end: int) -> bool:
        return self.start < end and (self.stop is None or start < self.stop)


class SequenceStatus(Enum):
    """Of a FINISHED one (it ended, failed or was cancelled) nothing is left but what a launched step still touches."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class GuideError(ValueError):
    """An answer cannot be held to its grammar any further. The text says why."""


class AnswerGuide(Protocol):
    """What an answer is held to (`engine.running.grammars`)."""

    def fill(self, address: int, size: int) -> None: ...

    def accept(self, token: int) -> bool: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """`tokens` is the prompt and what was generated; of `length`, the last `pending` are drawn by steps whose results
    have not come yet. `computed` have their keys and values in `blocks`, or will have them by launched steps, of which
    `in_flight` are not committed.

    pooling: it ends with its prompt, whose states are pooled; what is pooled so far is in `pooled`, for `running` alone
    to read. prompt_logprobs: what is wanted of its prompt, -1 for nothing; `scored` of its rows have said theirs. salt:
    its tenant's part of every cache key. visual_keys: of each item, what is kept of it is found under; empty as long as
    it is not known what the adapter changes."""

    request_id: str
    tokens: list[int]
    prompt_length: int
    positions: I32  # [A, prompt]
    delta: int
    spans: Seq[Span]
    items: Seq[Item]
    pixels: Seq[U8]
    sampling: Sampling
    max_tokens: int
    eos: frozenset[int]
    cache_root: bytes  # what every block digest starts from: tenant, adapter, and what all rows depend on
    salt: bytes = b""
    encoder_inputs: Seq[EncoderInput] = ()
    visible: Seq[VisibleImages] = ()
    arrange: Seq[I32 | None] = ()  # one an item
    min_tokens: int = 0
    grammar: str | None = None
    guide: AnswerGuide | None = None  # made of the grammar
    stretch: int = 1  # of the rotary frequencies, see RopeSpec
    adapter: AdapterRef | None = None
    priority: int = 0  # the smaller, the more urgent
    adapter_slot: int = 0  # while it is running; 0: the base model
    adapter_tier: str = ""  # where its adapter was found when it came: "slot", "host" or "disk"
    answers: bool = True  # False: it ends with its prompt, and the token that it draws is nobody's
    pooling: Pooling | None = None
    pooled: object = None
    prompt_logprobs: int = -1
    scored: int = 0
    visual_keys: Seq[bytes] = ()
    status: SequenceStatus = SequenceStatus.WAITING
    computed: int = 0
    pending: int = 0
    in_flight: int = 0
    drawn_at: int = 0  # which token of the last step that drew one is this sequence's
    cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of full blocks, as far as they were asked for
    arrived: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None  # from arrival to the first step
    needs_images_until: int = field(init=False)  # no row from here on needs any

    @classmethod
    def from_submit(
        cls, message: Submit, arrays: Arrays, rope: RopeSpec, request_id: str = "", choice: int = 0
    ) -> Sequence:
        """request_id: its own, where it is not the first of several choices, which draw by seeds of their own."""
        stretch = rope.stretch(len(arrays.ids))
        root = hashlib.sha256(len(message.salt).to_bytes(4, "little") + message.salt)
        root.update(b"" if message.adapter is None else message.adapter.digest)
        root.update(stretch.to_bytes(8, "little"))
        if any(reach.lo < 0 for reach in message.visible):  # rows before the images depend on all of them
            root.update(b"".join(item.digest for item in message.items))
        arranged = iter(arrays.arrange)
        return cls(
            request_id=request_id or message.request_id,
            tokens=arrays.ids.tolist(),
            prompt_length=len(arrays.ids),
            positions=arrays.positions,
            delta=message.delta,
            spans=message.spans,
            items=message.items,
            pixels=arrays.pixels,
            sampling=replace(message.sampling, seed=(message.sampling.seed + choice) % 2**63),
            max_tokens=max(1, message.max_tokens),
            answers=message.pooling is None and message.max_tokens > 0,
            eos=frozenset(message.eos),
            min_tokens=message.min_tokens,
            grammar=message.guided,
            cache_root=root.digest(),
            salt=message.salt,
            adapter=message.adapter,
            priority=message.priority,
            pooling=message.pooling,
            prompt_logprobs=-1 if choice else message.prompt_logprobs,
            visual_keys=() if message.adapter is not None else visual_keys(message.items, message.salt, b""),
            encoder_inputs=_encoder_inputs(message),
            visible=message.visible,
            arrange=[next(arranged) if item.arranged else None for item in message.items],
            stretch=stretch,
        )

    def __post_init__(self) -> None:
        stops = [need.stop for need in self.encoder_inputs]
        self.needs_images_until = sys.maxsize if None in stops else max((s for s in stops if s is not None), default=0)

    @property
    def takes_prefixes(self) -> bool:
        """Whether it may begin behind cached blocks: not where something is asked of the tokens in them."""
        if self.prompt_logprobs >= 0 and self.scored < self.prompt_length - 1:
            return False
        return self.pooling is None or self.pooling.kind == "last"

    @property
    def length(self) -> int:
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> int:
        """Tokens of the answer whose numbers are known."""
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens without keys and values; the newest token always is one."""
        return self.length - self.computed

    def ids_of(self, start: int, stop: int) -> Seq[int]:
        """Token ids; 0 for one whose number has not come yet."""
        known = self.tokens[start:stop]
        return known if len(known) == stop - start else [*known, *([0] * (stop - start - len(known)))]

    def positions_of(self, start: int, stop: int) -> I32:
        """I32 [A, stop - start]: the prompt's own, and past it the running number plus delta on every axis."""
        inside = self.positions[:, start : min(stop, self.prompt_length)]
        if stop <= self.prompt_length:
            return inside
        beyond = np.arange(max(start, self.prompt_length), stop, dtype=np.int32) + self.delta
        return np.concatenate([inside, np.broadcast_to(beyond, (len(self.positions), len(beyond)))], 1)

    def digest(self, index: int, size: int) -> bytes:
        """The content digest of full block `index`: everything its keys and values depend on. Chained, so that it also
        stands for all before it: tokens, the images (and which of their rows), adapter, tenant."""
        while len(self.digests) <= index:
            start = len(self.digests) * size
            parent = self.digests[-1] if self.digests else self.cache_root
            hasher = hashlib.sha256(parent)
            hasher.update(np.asarray(self.tokens[start : start + size], np.int32).tobytes())
            for span in self.spans:
                if span.start < start + size and start < span.start + span.length:
                    hasher.update((span.start - start).to_bytes(4, "little", signed=True))
                    hasher.update(self.items[span.item].digest)
            self.digests.append(hasher.digest())
        return self.digests[index]


def visual_keys(items: Seq[Item], salt: bytes, changes: bytes) -> tuple[bytes, ...]:
    """What is kept of each picture is found under its key, in every ledger. salt: the tenant's; changes: the digest of
    what an adapter changes in tower, projector and the keys and values of cross-attention (`b""`: nothing), so that an
    adapter that leaves those alone shares the base model's entries, and any other never does."""
    root = b"".join(len(part).to_bytes(4, "little") + part for part in (salt, changes))
    return tuple(hashlib.sha256(root + item.digest).digest() for item in items)


def _encoder_inputs(message: Submit) -> tuple[EncoderInput, ...]:
    if not message.visible:
        return tuple(EncoderInput(span.item, span.start, span.start + span.length) for span in message.spans)
    found = []
    for item in range(len(message.items)):
        seen = [i for i, reach in enumerate(message.visible) if max(reach.lo, 0) <= item < reach.hi]
        if seen:
            after = seen[-1] + 1
            stop = message.visible[after].start if after < len(message.visible) else None
            found.append(EncoderInput(item, message.visible[seen[0]].start, stop))
    return tuple(found)
