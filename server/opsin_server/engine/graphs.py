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

from opsin_kernels.attention import Bounds, Layout
from opsin_kernels.memory_attention import Runs
from opsin_plugins.blocks.decoder import KVPool, Rows
from opsin_plugins.blocks.model import Model
from opsin_plugins.fusions.base import Memory
from opsin_server.engine.batch import Batch

Record = Callable[[Callable[[], object]], Callable[[], object]]
"""Takes a step on tensors that stay where they are; returns what repeats it."""


class Recorder:
    """Records CUDA graphs that share one memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # kernels are compiled and libraries set up outside of the recording
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        replay: Callable[[], object] = graph.replay
        return replay


class DecodeGraphs:
    """Steps in which every sequence has one row and draws a token. Recordings are made when a size is first needed, or
    for all sizes by `prepare`. memory_rows: the pool of visual tokens that stand outside of the prompts, of each
    cross-attention layer; a model that has one is recorded with and without."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        max_sequences: int,
        max_context: int,
        record: Record,
        memory_rows: Sequence[Tensor] = (),
    ) -> None:
        self.model, self.pool, self._record = model, pool, record
        self.sizes, self.contexts = batch_sizes(max_sequences), context_sizes(max_context)
        block = pool[0].shape[1]
        self._buffers = Buffers(model, self.sizes[-1], -(-self.contexts[-1] // block), pool[0].device, pool[0].dtype)
        self._memory = MemoryBuffers(self.sizes[-1], memory_rows) if memory_rows else None
        self._made: dict[tuple[int, int, bool], Callable[[], object]] = {}

    def takes(self, batch: Batch) -> bool:
        """Whether a batch is such a step. Not with images, nor with rotary frequencies or adapters of its own: what
        those need differs from step to step in shape."""
        rows, layout = batch.rows, batch.rows.layout
        plain = rows.frequencies is None and rows.adapter_slot is None and not batch.visual
        plain = plain and (rows.memory is None or rows.memory.before is None)
        return (
            plain
            and batch.sample_rows is None
            and layout.decodes == len(layout.query_lengths) <= self.sizes[-1]
            and max(layout.kv_lengths) <= self.contexts[-1]
        )

    def run(self, batch: Batch) -> Tensor:
        """Logits [B, vocab], valid until the next step."""
        count = len(batch.ids)
        size = self.sizes[bisect_left(self.sizes, count)]
        context = self.contexts[bisect_left(self.contexts, max(batch.rows.layout.kv_lengths))]
        self._buffers.fill(batch, size)
        memory = batch.rows.memory
        if memory is not None and self._memory is not None:
            self._memory.fill(memory, size)
        self._recorded(size, context, memory is not None)()
        return self._buffers.logits[:count]

    def prepare(self) -> None:
        """Records every size, the largest first: the smaller ones then fit into its memory."""
        self._buffers.empty()
        for size in reversed(self.sizes):
            for context in reversed(self.contexts):
                for remembers in (False, True) if self._memory is not None else (False,):
                    self._recorded(size, context, remembers)

    def _recorded(self, size: int, context: int, remembers: bool) -> Callable[[], object]:
        key = (size, context, remembers)
        if key not in self._made:
            (ids, rows), out = self._buffers.views(size, context), self._buffers.logits[:size]

            def step() -> object:
                if remembers:
                    assert self._memory is not None
                    rows.memory = self._memory.views(size)
                return out.copy_(self.model.logits(self.model(ids, rows, self.pool)))

            self._made[key] = self._record(step)
        return self._made[key]


class Buffers:
    """A step's numbers at addresses that never change, for the largest batch; smaller ones use their front."""

    def __init__(self, model: Model, size: int, blocks: int, device: torch.device, dtype: torch.dtype) -> None:
        axes = max(1, len(model.spec.decoder.rope.sections))

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.ids, self.slots, self.positions = zeros(size), zeros(size), zeros(axes, size)
        self.lengths, self.table = zeros(size, dtype=torch.int32), zeros(size, blocks, dtype=torch.int32)
        self.starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.logits = zeros(size, model.spec.decoder.vocab, dtype=dtype)
        self.empty()

    def empty(self) -> None:
        """Every row reads and writes nothing."""
        self.lengths.zero_()
        self.slots.fill_(-1)

    def fill(self, batch: Batch, size: int) -> None:
        count, layout = len(batch.ids), batch.rows.layout
        ((_, bounds),) = layout.launches
        lengths, table = bounds.lengths, bounds.table
        assert table is not None
        assert layout.slots is not None
        self.ids[:count].copy_(batch.ids)
        self.positions[:, :count].copy_(batch.rows.positions)
        self.slots[:count].copy_(layout.slots)
        self.lengths[:count].copy_(lengths)
        self.table[:count, : table.shape[1]].copy_(table)
        self.slots[count:size].fill_(-1)
        self.lengths[count:size].zero_()

    def views(self, size: int, context: int) -> tuple[Tensor, Rows]:
        layout = Layout([1] * size, [context] * size, self.table[:size], self.slots[:size])
        bounds = Bounds(self.starts[: size + 1], self.lengths[:size], self.table[:size], 1, context)
        layout.launches = [(slice(0, size), bounds)]
        return self.ids[:size], Rows(self.positions[:, :size], layout)


class MemoryBuffers:
    """Where each row's visual memory lies, at addresses that never change. pool: [P, 2K, D] of each layer."""

    def __init__(self, size: int, pool: Sequence[Tensor]) -> None:
        device, longest = pool[0].device, len(pool[0])
        self.pool = pool
        self.lengths = torch.zeros(size, dtype=torch.int32, device=device)
        self.table = torch.zeros((size, longest), dtype=torch.int32, device=device)
        self.starts = torch.arange(size + 1, dtype=torch.int32, device=device)

    def fill(self, memory: Memory, size: int) -> None:
        """Rows that see nothing have length 0."""
        bounds = memory.runs.bounds
        assert bounds.table is not None
        rows = slice(0, len(bounds.lengths)) if memory.rows is None else memory.rows
        self.lengths[:size].zero_()
        self.lengths[rows] = bounds.lengths
        self.table[:, : bounds.longest][rows] = bounds.table

    def views(self, size: int) -> Memory:
        """Called within the recorded step: which rows see anything is found anew each time."""
        lengths = self.lengths[:size]
        runs = Runs(())
        runs.bounds = Bounds(self.starts[: size + 1], lengths, self.table[:size], 1, self.table.shape[1])
        return Memory(runs, sees=lengths > 0, pool=self.pool)


def batch_sizes(largest: int) -> list[int]:
    """Sizes that are recorded: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, and of 64. At most a fifth of a step's
    rows is filling, from 40 rows on."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, largest + 64, 64)]
    return [*(n for n in steps if n < largest), largest]


def context_sizes(largest: int) -> list[int]:
    """Contexts that are recorded: powers of four from 1,024 on. They shape only how many parts keys are split into."""
    sizes = []
    size = 1024
    while size < largest:
        sizes.append(size)
        size *= 4
    return [*sizes, largest]
