"""Decode steps recorded once and replayed: what the host launches for a step of many small kernels is one launch.

A recording has fixed addresses and a fixed grid. So a step's numbers are copied into buffers of the next larger batch
size, rows that fill it up have length 0 and slot -1 (they read nothing, write nothing, and their logits are dropped),
and the parts that keys are split into follow from a bucket of context lengths. Nothing in a recorded step asks the
device for a number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opsin_kernels.cross_attention import CrossRuns
from opsin_kernels.layout import Bounds, Layout
from opsin_kernels.transfer import moved
from opsin_plugins.blocks.adapter_slots import AdapterSlots
from opsin_plugins.blocks.decoder import KVPool, ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.slot_lora import SlotLora
from opsin_server.engine.running.batch import Batch

Capture = Callable[[Callable[[], object]], Callable[[], object]]
"""Takes a step on tensors that stay where they are; returns what repeats it."""


class GraphCapture:
    """Records CUDA graphs that share one memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # one for all: libraries keep some workspace for every stream they have seen

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()  # kernels are compiled and libraries set up outside of the recording
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            run()
        replay: Callable[[], object] = graph.replay
        return replay


class DecodeGraphs:
    """Steps in which every sequence has one row and draws a token. Recordings are made when a size is first needed, or
    for all sizes by `prepare`. cross_kv: the pool of visual tokens that stand outside of the prompts, of each
    cross-attention layer. adapters: the slots. A model that has either is recorded with and without, so that steps that
    need neither pay for neither."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        max_sequences: int,
        max_context: int,
        record: Capture,
        cross_kv: Sequence[Tensor] = (),
        adapters: AdapterSlots | None = None,
    ) -> None:
        self.adapters = adapters
        self.model, self.pool, self._record = model, pool, record
        self.sizes, self.contexts = batch_sizes(max_sequences), context_sizes(max_context)
        block = pool[0].shape[1]
        self._buffers = Buffers(model, self.sizes[-1], -(-self.contexts[-1] // block), pool[0].device)
        self._cross = CrossBuffers(self.sizes[-1], cross_kv) if cross_kv else None
        self._made: dict[tuple[int, int, bool, bool], Callable[[], object]] = {}

    def can_replay(self, batch: Batch, cross: CrossInputs | None) -> bool:
        """Whether a batch is such a step. Not with images, nor with rotary frequencies of its own: what those need
        differs from step to step in shape."""
        layout = batch.layout
        return (
            not batch.visual
            and all(c.sequence.stretch == 1 for c in batch.chunks)
            and (cross is None or cross.before is None)
            and batch.wanted is None
            and layout.decodes == len(layout.query_lengths) <= self.sizes[-1]
            and max(layout.kv_lengths) <= self.contexts[-1]
        )

    def run(self, batch: Batch, cross: CrossInputs | None, drawn: Tensor | None = None) -> Tensor:
        """Logits [B, vocab], valid until the next step. drawn: the tokens of the step before, which `batch.carried`
        takes ids from."""
        count = len(batch.chunks)
        size = self.sizes[bisect_left(self.sizes, count)]
        context = self.contexts[bisect_left(self.contexts, max(batch.layout.kv_lengths))]
        self._buffers.fill(batch, size)
        if batch.carried is not None:
            assert drawn is not None
            rows, places = (moved(x, drawn.device) for x in batch.carried)
            self._buffers.ids[rows] = drawn[places]
        if cross is not None and self._cross is not None:
            self._cross.fill(cross, size)
        self._captured(size, context, cross is not None, batch.has_adapters)()
        return self._buffers.logits[:count]

    def prepare(self) -> None:
        """Records every size, the largest first: the smaller ones then fit into its memory."""
        self._buffers.empty()
        for size in reversed(self.sizes):
            for context in reversed(self.contexts):
                for crossed in (False, True) if self._cross is not None else (False,):
                    for adapted in (False, True) if self.adapters is not None else (False,):
                        self._captured(size, context, crossed, adapted)

    @property
    def count(self) -> int:
        """Recordings that there are."""
        return len(self._made)

    def _captured(self, size: int, context: int, crossed: bool, adapted: bool) -> Callable[[], object]:
        key = (size, self._parts(size, context), crossed, adapted)
        if key not in self._made:
            out = self._buffers.logits[:size]

            def step() -> object:
                cross = self._cross.views(size) if crossed and self._cross is not None else None
                lora = self._buffers.lora(self.adapters, size) if adapted and self.adapters is not None else None
                ids, inputs = self._buffers.views(size, context, lora, cross)
                return out.copy_(self.model.logits(self.model(ids, inputs, self.pool), lora))

            self._made[key] = self._record(step)
        return self._made[key]

    def _parts(self, size: int, context: int) -> int:
        """What a context decides on: all with as many parts of the keys share a recording."""
        from opsin_kernels.gpu.attention_shapes import decode_parts

        decoder, pool = self.model.spec.decoder, self.pool[0]
        return decode_parts(
            decoder.heads,
            decoder.kv_heads,
            decoder.head_dim,
            pool.shape[1],
            size,
            context,
            pool.device,
            bits=8 * pool.itemsize,
        )


class Buffers:
    """A step's numbers at addresses that never change, for the largest batch; smaller ones use their front. All but the
    block table, which most steps leave as it is, are moved in one copy. On the host there are two of each: while the
    numbers of one step may still be on their way, those of the next are written."""

    def __init__(self, model: Model, size: int, blocks: int, device: torch.device) -> None:
        axes = max(1, len(model.spec.decoder.rope.sections))
        count = (3 + axes) * size + -(-size // 2)  # the lengths are 32 bit
        self._staging = [Staging(count, size, device) for _ in range(2)]
        self._device = torch.zeros(count, dtype=torch.int64, device=device)
        rows, self.lengths = split_numbers(self._device, size)
        self.ids, self.slots, self.adapters, self.positions = rows[0], rows[1], rows[2], rows[3:]
        self.table = torch.zeros((size, blocks), dtype=torch.int32, device=device)
        self._last_table: Tensor | None = None
        self.starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        dtype = model.decoder.embedding.dtype
        self.logits = torch.zeros((size, model.spec.decoder.vocab), dtype=dtype, device=device)
        self.empty()

    def empty(self) -> None:
        """Every row reads and writes nothing."""
        self._device.zero_()
        self.slots.fill_(-1)

    def fill(self, batch: Batch, size: int) -> None:
        """batch: on the host."""
        self._staging.reverse()
        self._staging[0].write(batch, size)
        self._staging[0].copy_to(self._device)
        table = batch.layout.block_table
        assert table is not None
        if self._last_table is None or not torch.equal(table, self._last_table):
            self.table[: len(table), : table.shape[1]].copy_(moved(table, self.table.device))
            self._last_table = table

    def lora(self, adapters: AdapterSlots, size: int) -> Lora:
        """Of rows whose adapters only the device knows."""
        return SlotLora(adapters, None, self.adapters[:size])

    def views(
        self, size: int, context: int, lora: Lora | None, cross: CrossInputs | None
    ) -> tuple[Tensor, ModelInputs]:
        bounds = Bounds(self.starts[: size + 1], self.lengths[:size], self.table[:size], 1, context)
        given = [(slice(0, size), bounds)]
        layout = Layout([1] * size, [context] * size, self.table[:size], self.slots[:size], given)
        return self.ids[:size], ModelInputs(self.positions[:, :size], layout, lora, cross)


class Staging:
    """The host's side of a step's numbers, in memory that a GPU copies from by itself."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._flat = torch.zeros(count, dtype=torch.int64, pin_memory=on_gpu)
        self._rows, self._lengths = split_numbers(self._flat, size)
        self._copied = torch.cuda.Event() if on_gpu else None

    def write(self, batch: Batch, size: int) -> None:
        """Rows that fill a batch up to its size read nothing, write nothing and have no adapter."""
        if self._copied is not None:
            self._copied.synchronize()  # (two steps ago: at once, unless that failed with its copy still waiting)
        count = len(batch.chunks)
        self._rows[:3, :count] = batch.numbers
        self._rows[3:, :count] = batch.positions
        self._lengths[:count] = torch.tensor(batch.layout.kv_lengths, dtype=torch.int32)
        self._rows[1, count:size] = -1
        self._rows[2, count:size] = 0
        self._lengths[count:size] = 0

    def copy_to(self, device: Tensor) -> None:
        device.copy_(self._flat, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def split_numbers(flat: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Ids, KV indexes, adapter slots and the axes' positions I64 [3 + A, size]; lengths I32 [size]."""
    wide = len(flat) - -(-size // 2)
    return flat[:wide].view(-1, size), flat[wide:].view(torch.int32)[:size]


class CrossBuffers:
    """Where each row's visual tokens lie, at addresses that never change. pool: [P, 2K, D] of each layer."""

    def __init__(self, size: int, pool: Sequence[Tensor]) -> None:
        device, longest = pool[0].device, len(pool[0])
        self.pool = pool
        self.lengths = torch.zeros(size, dtype=torch.int32, device=device)
        self.table = torch.zeros((size, longest), dtype=torch.int32, device=device)
        self.starts = torch.arange(size + 1, dtype=torch.int32, device=device)

    def fill(self, cross: CrossInputs, size: int) -> None:
        """Rows that see nothing have length 0."""
        bounds = cross.runs.bounds
        assert bounds.table is not None
        rows = slice(0, len(bounds.lengths)) if cross.rows is None else cross.rows
        self.lengths[:size].zero_()
        self.lengths[rows] = bounds.lengths
        self.table[:, : bounds.longest][rows] = bounds.table

    def views(self, size: int) -> CrossInputs:
        """Called within the recorded step: which rows see anything is found anew each time."""
        lengths = self.lengths[:size]
        bounds = Bounds(self.starts[: size + 1], lengths, self.table[:size], 1, self.table.shape[1])
        return CrossInputs(CrossRuns((), bounds), sees=lengths > 0, pool=self.pool)


def batch_sizes(largest: int) -> list[int]:
    """Sizes that are recorded: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, and of 64. At most a fifth of a step's
    rows is filling, from 40 rows on."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, largest + 64, 64)]
    return [*(n for n in steps if n < largest), largest]


def context_sizes(largest: int) -> list[int]:
    """Contexts that are recorded: 1,024, 4,096, 16,384 and the largest. They shape only how many parts keys are split
    into, and beyond some ten thousand rows hardly that."""
    return [*(n for n in (1024, 4096, 16384) if n < largest), largest]
