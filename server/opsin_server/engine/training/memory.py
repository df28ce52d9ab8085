"""Whether a run fits into the memory that training has: counted before its first step, from one of its own rows.

The row is run forward once, which shows what each kind of piece keeps for its backward pass, a row, and how large the
tensors between pieces are. A micro-batch needs at least the latter, and one piece's at a time; what is left beyond that
keeps pieces that are then not made again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_server.engine.training import micro_step
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.losses import CHUNK, trains_head
from opsin_server.engine.training.micro_batch import MicroBatch
from opsin_server.engine.training.micro_step import VisualInput
from opsin_server.engine.training.pieces import Piece, Tape
from opsin_server.engine.training.trained_model import TrainingFailed

STATES = 4  # flat, gradient and two moments, of float32
COPIES = 4  # of a checkpoint that is being written: flat, two moments, and the adapter itself
TRANSIENT = 3  # times what a piece keeps: that, the gradients of it, and what the operations take meanwhile
EFFICIENT = 256  # tokens of a micro-batch, from which on larger ones are hardly faster
BLOCK = 2048  # tokens of the vocabulary that the loss looks at together
FLOAT = 4
STORES = 0.05  # of what is left, for visual tokens; the same for pixels: what has no room is read from a file
LEAST_STORE, LARGEST_STORE = 2**20, 256 * 2**20


class DoesNotFit(TrainingFailed):
    """The text has the numbers. least: bytes that a run must have."""

    def __init__(self, text: str, least: int) -> None:
        super().__init__(text)
        self.least = least


@dataclass(frozen=True)
class RowBytes:
    """Of a part of the model, a row. held: all tensors between its pieces. largest: what one piece keeps at most. all:
    what all of them keep."""

    held: float = 0.0
    largest: float = 0.0
    all: float = 0.0


@dataclass(frozen=True)
class LargestRow:
    """tokens, and patches of its pictures, of the largest row, or pair of rows."""

    tokens: int
    patches: int


@dataclass(frozen=True)
class TrainingMemory:
    """fixed: bytes of the trainee and its optimizer, of a checkpoint's copies, and of a chunk of the loss."""

    fixed: int
    language: RowBytes
    vision: RowBytes

    def needs(self, tokens: int, patches: int) -> int:
        """Bytes, at least, for micro-batches of such a size."""
        held = self.language.held * tokens + self.vision.held * patches
        piece = TRANSIENT * max(self.language.largest * tokens, self.vision.largest * patches)
        return self.fixed + int(held + piece) + 2 * LEAST_STORE

    def settle(self, tokens: int, largest: LargestRow, reserve: int) -> Settled:
        """tokens: of a micro-batch, as they were asked for; fewer, where these do not fit. reserve: bytes that the run
        has. Raises DoesNotFit where the largest row does not fit into them."""
        least = self.needs(largest.tokens, largest.patches)
        if least > reserve:
            raise DoesNotFit(
                f"the largest row, of {largest.tokens:,} tokens and {largest.patches:,} patches, needs {least:,} bytes "
                f"to train on; the run has {reserve:,}. Shorter rows, smaller images or a smaller rank need less",
                least,
            )
        share = largest.patches / max(1, largest.tokens)  # of a micro-batch's patches, at most as in its largest row
        size = self._size(max(tokens, largest.tokens), largest.tokens, share, reserve)
        left = reserve - self.needs(size, int(share * size))
        kept = int((self.language.all + share * self.vision.all) * size)
        store = min(LARGEST_STORE, LEAST_STORE + max(int(left * STORES), (left - kept) // 2))
        return Settled(size, max(0, left - 2 * (store - LEAST_STORE)), store)

    def _size(self, tokens: int, least: int, share: float, reserve: int) -> int:
        """Of a micro-batch. A smaller one of which all is kept is better than a larger one of which some is made again
        (a third more work), as long as its products are large enough to be efficient."""
        a_token = (self.needs(least, int(share * least)) - self.needs(0, 0)) / least
        a_token += self.language.all + share * self.vision.all
        kept_whole = int((reserve - self.needs(0, 0)) * (1 - 2 * STORES) / a_token)
        size = min(tokens, max(least, EFFICIENT, kept_whole))
        while size > least and self.needs(size, int(share * size)) > reserve:
            size = max(least, size // 2)
        return size


@dataclass(frozen=True)
class Settled:
    """micro_batch_tokens: most of a micro-batch, unless one row has more. kept: bytes for what pieces keep. store: for
    visual tokens in memory, and as much for pixels."""

    micro_batch_tokens: int
    kept: int
    store: int


class MemoryPool:
    """Bytes that all runs of an engine share. runs: that may go on at the same time: each has its part, or what it
    needs, where that is more and there."""

    def __init__(self, total: int, runs: int = 1) -> None:
        self.total, self._part, self.free = total, total // runs, total

    def take(self, least: int) -> int:
        found = min(self.free, max(self._part, least))
        self.free -= found
        return found

    def give_back(self, taken: int) -> None:
        self.free += taken


def trainee_bytes(numbers: int) -> int:
    """Of so many that are trained."""
    return numbers * FLOAT * (STATES + COPIES)


def count(
    model: Model, batch: MicroBatch, visual: VisualInput, lora: TraineeLora, numbers: int, frozen: int = 0
) -> Generator[Piece, None, TrainingMemory]:
    """batch: one row. numbers: that are trained. frozen: of a copy beside them."""
    kept = KeptBytes(0, [*model.parameters(), *model.buffers(), *(x for t in lora.linears.values() for x in t.leaves)])
    tape = Tape(kept)
    try:
        yield from micro_step.forward(model, batch, visual, lora, tape)
    finally:
        tape.drop()
    decoder = model.spec.decoder
    columns = decoder.vocab if trains_head(lora) else BLOCK
    loss = CHUNK * FLOAT * (TRANSIENT * columns + 4 * decoder.width)
    patches = sum(item.shape[0] for item in batch.items)
    return TrainingMemory(
        fixed=trainee_bytes(numbers) + frozen * FLOAT + loss,
        language=_of(tape, kept, "language", len(batch.ids)),
        vision=_of(tape, kept, "vision", patches) if patches else RowBytes(),
    )


def _of(tape: Tape, kept: KeptBytes, part: str, rows: int) -> RowBytes:
    stages = [kind for kind in tape.kinds if kind.startswith(part)]
    found = [kept.per_row(kind) for kind in stages]
    return RowBytes(tape.held.get(part, 0) / rows, max(found, default=0.0), sum(found))
