"""Which packed rows belong to which sequence, and where their keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from opsin_kernels.transfer import on_device


@dataclass(frozen=True)
class Bounds:
    """Sequences of one launch of the kernel, on the device: I32 starts [S + 1], the first query row of each; lengths
    [S], of keys; table [S, pages], the pages of each, None where keys are packed like the queries. longest_query,
    longest: bounds that the host knows, which shape the launch."""

    starts: Tensor
    lengths: Tensor
    table: Tensor | None
    longest_query: int
    longest: int


@dataclass
class Segments:
    """Sequences packed one behind the other, each of which sees only itself; lengths: rows of each, host integers.

    cores: how many rows at the front of each see all of it; its other rows see those alone. None: all of them do.
    """

    lengths: Sequence[int]
    cores: Sequence[int] | None = None
    _made: tuple[Bounds, Tensor | None] | None = field(default=None, init=False, repr=False, compare=False)

    def bounds(self, device: torch.device) -> tuple[Bounds, Tensor | None]:
        """As the kernel takes it, with the rows that each row sees, I32 [T, 2], where cores are given. Built once a
        forward pass, not once a layer: the copy makes the host wait."""
        if self._made is None:
            count = len(self.lengths)
            numbers = on_device([*accumulate(self.lengths, initial=0), *self.lengths], torch.int32, device)
            longest = max(self.lengths)
            bounds = Bounds(numbers[: count + 1], numbers[count + 1 :], None, longest, longest)
            self._made = bounds, None if self.cores is None else self._ranges(self.cores).to(device)
        return self._made

    def _ranges(self, cores: Sequence[int]) -> Tensor:
        spans = zip(self.lengths, cores, strict=True)
        ends = torch.tensor([n for a, core in spans for n in [a] * core + [core] * (a - core)], dtype=torch.int32)
        return torch.stack([torch.zeros_like(ends), ends], 1)


@dataclass
class Layout:
    """Which packed rows belong to which sequence, in order; sequences of one query row (decode) stand first.

    query_lengths, kv_lengths: host integers, one a sequence; kv_lengths count the rows after this step's are written.
    block_table I64 [S, max blocks], slots I64 [T] (block · block size + offset): None without a cache (training), where
    a sequence attends to its own rows only and kv_lengths equal query_lengths.

    given: launches whose numbers lie on the device already (a recorded step's buffers).
    """

    query_lengths: Sequence[int]
    kv_lengths: Sequence[int]
    block_table: Tensor | None = None
    slots: Tensor | None = None
    given: Sequence[tuple[slice, Bounds]] | None = None

    @cached_property
    def decodes(self) -> int:
        """How many sequences at the front have one query row."""
        return next((i for i, n in enumerate(self.query_lengths) if n != 1), len(self.query_lengths))

    @cached_property
    def decode_rows(self) -> int:
        """The longest decode sequence: how many cached rows each of them gathers."""
        return max(self.kv_lengths[: self.decodes])

    @cached_property
    def decode_lengths(self) -> Tensor:
        """I64 [B]: how many cached rows each of them sees."""
        return torch.tensor(self.kv_lengths[: self.decodes])

    @cached_property
    def decode_mask(self) -> Tensor | None:
        """F32 [B, 1, 1, L], added to the scores: 0 where a decode sequence's gathered row exists, else -inf; None when
        all do. Built once a step, and as numbers: from booleans each layer would make them again (20 µs)."""
        lengths = self.kv_lengths[: self.decodes]
        if min(lengths) == self.decode_rows:
            return None
        assert self.block_table is not None
        ends = torch.tensor(lengths, device=self.block_table.device)
        absent = torch.arange(self.decode_rows, device=ends.device) >= ends[:, None]
        return torch.zeros(absent.shape, device=ends.device).masked_fill_(absent, -torch.inf)[:, None, None]

    @cached_property
    def launches(self) -> Sequence[tuple[slice, Bounds]]:
        """Query rows and bounds of each launch: those that decode and those that prefill want tiles, and parts that
        keys are split into, of their own. Built once a step."""
        if self.given is not None:
            return self.given
        assert self.block_table is not None
        count, first = len(self.query_lengths), self.decodes
        groups = [slice(0, first), slice(first, count)] if 0 < first < count else [slice(0, count)]
        numbers, table = [], self.block_table.to(torch.int32)
        for group in groups:
            numbers += [*accumulate(self.query_lengths[group], initial=0), *self.kv_lengths[group]]
        moved = on_device(numbers, torch.int32, table.device)
        found, row, at = [], 0, 0
        for group in groups:
            queries, lengths, size = self.query_lengths[group], self.kv_lengths[group], group.stop - group.start
            starts, at = moved[at : at + size + 1], at + 2 * size + 1
            bounds = Bounds(starts, moved[at - size : at], table[group], max(queries), max(lengths))
            found.append((slice(row, row + sum(queries)), bounds))
            row += sum(queries)
        return found

    @cached_property
    def segments(self) -> Segments:
        """The sequences without a cache."""
        return Segments(self.query_lengths)

    def blocks_of(self, sequences: slice, length: int, block: int) -> Tensor:
        """I64 [n · blocks]: the blocks that hold the first `length` rows of some sequences; built once a step."""
        key = (sequences.start, sequences.stop, length, block)
        if key not in self._blocks:
            assert self.block_table is not None
            self._blocks[key] = self.block_table[sequences, : -(-length // block)].reshape(-1)
        return self._blocks[key]

    @cached_property
    def _blocks(self) -> dict[tuple[int, ...], Tensor]:
        return {}
