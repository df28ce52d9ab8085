"""What a step computes, and what came of it. No torch, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.ipc.item import Item


@dataclass(frozen=True)
class Limits:
    max_sequences: int
    max_context: int  # tokens of a prompt and its answer
    max_batch_tokens: int
    max_encode_patches: int  # a step, beyond the first image, however fast they are encoded


@dataclass(slots=True)
class Chunk:
    """Tokens start … start + length of a sequence. samples: its last row draws the next token."""

    sequence: Sequence
    start: int
    length: int
    samples: bool

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def draw(self) -> int:
        """Which token of the answer a chunk that samples draws, from 0 on."""
        return self.stop - self.sequence.prompt_length

    @property
    def decodes(self) -> bool:
        return self.samples and self.length == 1


@dataclass(frozen=True, slots=True)
class Encoding:
    """Visual tokens that must be computed: of an item of a sequence, its layers from `first` on, as many as `part`
    has."""

    sequence: Sequence
    item: int
    first: int
    part: Item

    @property
    def key(self) -> bytes:
        return self.sequence.visual_keys[self.item]

    @property
    def goes_on(self) -> bool:
        """Whether it is not the whole item."""
        return self.first > 0 or not self.completes

    @property
    def stop(self) -> int:
        return self.first + self.part.layers

    @property
    def completes(self) -> bool:
        return self.stop == self.sequence.items[self.item].layers


@dataclass(frozen=True)
class Room:
    """What a step may have once all but the background's is planned: so many tokens more. Altogether: tokens that
    decode, and of prompts; patches to encode, and images whatever they have."""

    tokens: int
    decode_tokens: int
    prompt_tokens: int
    patches: int
    images: int


@dataclass(slots=True)
class Plan:
    """chunks: those of one row first. encode: what must be computed of images before. place: adapters that must be put
    into their slots first, by digest. room: once only the background's is planned, beside others."""

    chunks: list[Chunk] = field(default_factory=list)
    encode: list[Encoding] = field(default_factory=list)
    place: dict[bytes, tuple[int, LoadedAdapter[Any]]] = field(default_factory=dict)
    room: Room | None = None

    @property
    def tokens(self) -> int:
        """That are computed."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def decode_tokens(self) -> int:
        return sum(chunk.decodes for chunk in self.chunks)

    @property
    def prompt_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks if not chunk.decodes)

    @property
    def patches(self) -> int:
        """Of the images that are encoded."""
        return sum(encoding.part.patches for encoding in self.encode)

    @property
    def empty(self) -> bool:
        return not (self.chunks or self.encode or self.place)


Finish = Literal["stop", "complete", "length", "error"]


@dataclass(slots=True)
class Committed:
    """A token that a step drew as number `row`. finish: "stop" (the token is an end), "complete" (by its grammar the
    answer ends with the token), "length", "error" (there is no token: the logits were no numbers, or no longer follow
    the grammar, which `why` says), or None: the answer goes on."""

    sequence: Sequence
    row: int
    token: int
    finish: Finish | None
    why: str = ""
