"""Every message that crosses the door, and how it travels. No torch, no HTTP, no text: ids, positions, pixels, numbers.
(The engine's configuration goes before, as a line on its standard input.)

In both directions a message travels in msgpack, with any number of raw frames behind it. A Submit's are, in this order:
ids I32 [T], positions I32 [A, T], then the pixels of each item U8 [N, C·p·p], then I32 [tokens] of each item that is
arranged. Those of training say for themselves what theirs are; all others have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeVar

import msgspec

from opsin_plugins.spec import I32, U8, Span, VisibleImages, VisualItem
from opsin_server.config import EngineConfig
from opsin_server.ipc.item import Item
from opsin_server.ipc.memory_messages import Estimate, MemoryLedger
from opsin_server.ipc.training_messages import FromTraining, ToTraining

# ------------------------------------------------------------------------------------- to the engine


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are drawn. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; top_logprobs -1: none.
    Penalties are off at 0, repetition_penalty at 1. logit_bias: pairs of token id and what is added."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    top_logprobs: int = -1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalizes(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1 or self.logit_bias)


class Pooling(msgspec.Struct, frozen=True):
    """How the states of a prompt's tokens, after the last norm, become one vector. "last", "cls": the last token's, the
    first one's; "mean": of all. A dual encoder pools as it was trained, whatever is said here. normalized: to length
    1."""

    kind: Literal["last", "mean", "cls"] = "last"
    normalized: bool = True


class AdapterRef(msgspec.Struct, frozen=True):
    """An adapter by its content: SHA-256 of the file at `path`. The engine reads it when a request first names it, and
    keeps it as long as it has room; nothing has to be said before, or again after it was restarted."""

    digest: bytes
    path: str


# A request of this priority or a larger one is the background's: it has what the others leave of each step's time.
BACKGROUND = 2**32


class Submit(msgspec.Struct, frozen=True, tag=True):
    """priority: the smaller, the more urgent."""

    request_id: str
    sampling: Sampling
    max_tokens: int  # 0: nothing but what is asked of the prompt
    eos: tuple[int, ...]
    delta: int
    axes: int
    spans: tuple[Span, ...] = ()
    items: tuple[Item, ...] = ()
    visible: tuple[VisibleImages, ...] = ()
    salt: bytes = b""  # a tenant's part of every cache key
    adapter: AdapterRef | None = None  # None: the base model
    priority: int = 0
    guided: str | None = None  # a grammar in llguidance's form, to which the answer is held
    min_tokens: int = 0  # before which no end is drawn, unless nothing else may be
    pooling: Pooling | None = None  # the request ends with this, and no token is drawn; max_tokens is 1 then
    prompt_logprobs: int = -1  # of the prompt's own tokens, and of so many likeliest ones; -1: not even theirs
    choices: int = 1  # answers to the prompt, each a request of its own from here on: see `choice_ids`


def choice_ids(request_id: str, choices: int) -> list[str]:
    """What the answers of one Submit are called in outputs, and when they are cancelled."""
    return [request_id, *(f"{request_id}#{number}" for number in range(1, choices))]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    request_ids: tuple[str, ...]


class Vocabulary(msgspec.Struct, frozen=True, tag=True):
    """What tokens add to a text, for guided decoding: said once in an engine's life, before any answer is guided.
    special: ids that add nothing. ends: ids that may end an answer. Raw frames (`ipc.vocabulary_frames`): the bytes of
    all tokens, one behind another, and their lengths I32 [V]."""

    special: tuple[int, ...]
    ends: tuple[int, ...]


class KeepAdapters(msgspec.Struct, frozen=True, tag=True):
    """These are read at once and stay on the device, instead of those that were kept before. Fewer than there are
    slots."""

    adapters: tuple[AdapterRef, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Leave now; the API process has drained."""


ToEngine: TypeAlias = Submit | Cancel | Vocabulary | KeepAdapters | Stop | ToTraining

# ----------------------------------------------------------------------------------- from the engine


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Bytes of weights loaded so far."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    device: str
    dtype: str
    kernels: str
    max_context: int
    max_image_tokens: int  # of one image, where its family can resize
    max_sequences: int
    memory: MemoryLedger
    stored: tuple[tuple[str, int], ...] = ()  # bytes of the weights by format


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start; the message is for the operator."""

    message: str


class Logprobs(msgspec.Struct, frozen=True):
    """One generated token: its own log probability and the most likely alternatives, most likely first."""

    chosen: float
    ids: tuple[int, ...]
    values: tuple[float, ...]


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Of some tokens of a prompt, from its token `first` on (never its first, before which there is nothing). whole:
    I32 [1 + top, tokens], the ranks of the tokens themselves (1: the likeliest of all) and the ids of the `top`
    likeliest; real: F32 of the same shape, their log probabilities. Little-endian."""

    first: int
    top: int
    whole: bytes
    real: bytes


class Output(msgspec.Struct, frozen=True):
    """What one step gave one request. finish: "stop" (an eos id, which is `end`, not among ids, and which the last
    logprobs are of) | "length" | "error" | None. code: of an error that is the request's own, and would come again;
    empty: the engine's."""

    request_id: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    finish: str | None = None
    error: str | None = None
    cached_tokens: int = 0  # prompt tokens whose keys and values were found in the prefix cache
    queue_seconds: float = 0.0
    adapter_tier: str = ""  # where the request's adapter was found when it came: "slot", "host" or "disk"
    embedding: bytes = b""  # F32, little-endian: of a request with `pooling`, which ends with it
    code: str = ""
    end: int | None = None
    prompt: tuple[PromptLogprobs, ...] = ()  # of a request with `prompt_logprobs`: all that there is comes first


class AdapterLoad(msgspec.Struct, frozen=True):
    """An adapter's file was read, or could not be. digest: the adapter's."""

    digest: bytes
    seconds: float
    error: str = ""


class AdapterReport(msgspec.Struct, frozen=True):
    """Adapters by digest: on the device, least recently used first, and in the host's memory; what was read since the
    last report."""

    slots: tuple[bytes, ...] = ()
    host: tuple[bytes, ...] = ()
    loads: tuple[AdapterLoad, ...] = ()


class Stats(msgspec.Struct, frozen=True):
    """The engine's own count, sent with every step and once a second when idle (which also shows that it lives).
    running, waiting: without the background's."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_free: int = 0
    steps: int = 0
    decode_steps: int = 0  # of them those in which every sequence computes one token
    steps_ahead: int = 0  # of them those launched before the results of the step before were known
    preemptions: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    encoder_queries: int = 0  # images looked up
    encoder_hits: int = 0
    encoder_bytes: int = 0
    seconds: dict[str, float] = {}  # cumulative time in the parts of a step
    training_seconds: float = 0.0
    training_pieces: dict[str, int] = {}  # by kind


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """adapters: None where nothing has changed."""

    outputs: tuple[Output, ...]
    stats: Stats
    adapters: AdapterReport | None = None


FromEngine: TypeAlias = Estimate | Progress | Ready | Failed | Outputs | FromTraining

# ------------------------------------------------------------------------------- a request's arrays


class Arrays(msgspec.Struct, frozen=True):
    """What travels as the raw frames of a Submit (`ipc.submit_frames`)."""

    ids: I32
    positions: I32
    pixels: tuple[U8, ...]
    arrange: tuple[I32, ...] = ()  # of the items that are arranged, in their order


def describe(items: Sequence[VisualItem]) -> tuple[Item, ...]:
    return tuple(
        Item(
            i.digest, i.grid, i.tokens, (i.pixels.shape[0], i.pixels.shape[1]), i.tiles, i.hidden, i.arrange is not None
        )
        for i in items
    )


def arrays_of(ids: I32, positions: I32, items: Sequence[VisualItem]) -> Arrays:
    arrange = tuple(i.arrange for i in items if i.arrange is not None)
    return Arrays(ids, positions, tuple(i.pixels for i in items), arrange)


# ----------------------------------------------------------------------------------- how they travel

Frame: TypeAlias = bytes | memoryview
Decoded = TypeVar("Decoded")


class Unreadable(ValueError):
    """What came is no message of its direction. request_id: the request that it speaks of, where that can be read."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class _OfRequest(msgspec.Struct):
    """Whatever has a request's id."""

    request_id: str


_encode = msgspec.msgpack.Encoder().encode
_decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
_decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
_decode_of_request = msgspec.msgpack.Decoder(_OfRequest).decode


def pack(message: ToEngine | FromEngine, frames: Sequence[Frame] = ()) -> list[Frame]:
    """What is sent, in either direction: the message, then its raw frames as they are."""
    return [_encode(message), *frames]


def unpack_to_engine(parts: Sequence[bytes]) -> tuple[ToEngine, Sequence[bytes]]:
    """The message to the engine, and its raw frames. Raises Unreadable."""
    return _decoded(_decode_to_engine, parts[0]), parts[1:]


def unpack_from_engine(parts: Sequence[bytes]) -> tuple[FromEngine, Sequence[bytes]]:
    """The message from the engine, and its raw frames. Raises Unreadable."""
    return _decoded(_decode_from_engine, parts[0]), parts[1:]


def _decoded(decode: Callable[[bytes], Decoded], data: bytes) -> Decoded:
    try:
        return decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unreadable(f"{len(data)} bytes are no message: {error}", _request_of(data)) from error


def _request_of(data: bytes) -> str | None:
    try:
        return _decode_of_request(data).request_id
    except (msgspec.MsgspecError, RecursionError):
        return None


def config_line(config: EngineConfig) -> bytes:
    """In ASCII: a path may hold bytes that are no UTF-8, which json escapes and msgspec refuses."""
    return json.dumps(msgspec.to_builtins(config)).encode() + b"\n"


def read_config_line(line: bytes) -> EngineConfig:
    return msgspec.convert(json.loads(line), EngineConfig)
