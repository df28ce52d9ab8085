"""What the engine says of memory: how the device's is divided, and what a model takes."""

from __future__ import annotations

import msgspec


class Reserve(msgspec.Struct, frozen=True):
    """A part of the device's memory, and what it is for."""

    name: str
    bytes: int


class AdapterRoom(msgspec.Struct, frozen=True):
    """slots: adapters on the device, each of `rank` at most, in slot_bytes. host_copies: adapters in the host's memory.
    projectors: whether a slot holds a projector of the adapter's own."""

    slots: int = 0
    rank: int = 0
    host_copies: int = 0
    projectors: bool = False
    slot_bytes: int = 0


class MemoryLedger(msgspec.Struct, frozen=True):
    """How the device's memory is divided, once, before anything is allocated. free: bytes at that time. Reserves of
    nothing are left out. kv_blocks, encoder_blocks: of `block_size` tokens."""

    free: int
    reserves: tuple[Reserve, ...]
    kv_blocks: int
    encoder_blocks: int
    block_size: int
    adapters: AdapterRoom = AdapterRoom()

    @property
    def reserved(self) -> int:
        return sum(reserve.bytes for reserve in self.reserves)

    @property
    def slack(self) -> int:
        """What is left on purpose: for libraries, fragments, and whatever else runs there."""
        return self.free - self.reserved

    def room_for_video(self, context: int) -> int:
        """Visual tokens of one, in a context of so many tokens."""
        return min(context, self.encoder_blocks * self.block_size)

    def __getitem__(self, name: str) -> int:
        return next((reserve.bytes for reserve in self.reserves if reserve.name == name), 0)


class TrainingEstimate(msgspec.Struct, frozen=True):
    """What a training run may have beside serving. memory: bytes. rank: the largest, of all linears together; 0: none
    fits. batch: tokens of a micro-batch. image_tokens: of the largest picture that fits into a row; 0: the model takes
    none. least: what --train-memory must be for a run of a small rank; 0: it is enough."""

    memory: int
    rank: int = 0
    batch: int = 0
    image_tokens: int = 0
    least: int = 0


class Estimate(msgspec.Struct, frozen=True, tag=True):
    """What a model takes and whether it serves, known before its weights are read. Bytes, except for counts.

    dtype: in which it is computed. stored: what its weights are stored in, with the bytes of each format.
    kv_per_1000: keys and values of 1,000 tokens. image_tokens, image_bytes: visual tokens of the largest image, and
    what they take while a request has it. encoder_peak: activations while that image is encoded, about. context,
    images: the tokens that fit, and how many of the largest images. refusal: why it does not serve; empty when it does,
    and then there is a ledger. training: where it was asked for. dimensions: of a dual encoder's embeddings, which has
    no keys and values; 0: of no other. video_tokens: visual tokens of one video for which there is room; no_video: why
    there are none, in a family that has them.
    """

    family: str
    parameters: int
    tensors: int
    dtype: str
    stored: tuple[tuple[str, int], ...]
    weights: int
    kv_per_1000: int
    image_tokens: int
    image_bytes: int
    encoder_peak: int
    free: int
    max_positions: int
    context: int
    images: int
    refusal: str = ""
    ledger: MemoryLedger | None = None
    training: TrainingEstimate | None = None
    dimensions: int = 0
    video_tokens: int = 0
    no_video: str = ""
