"""What a launch of `attention` is specialised for, and into how many parts it splits the keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from opsin_kernels.gpu import tuned

MAX_SPLITS = 128  # with two key heads and one sequence, still a program for each of 132 processors


@dataclass(frozen=True)
class Shape:
    """What a launch is specialised for: sizes and the tile that suits them."""

    heads: int
    kv_heads: int
    size: int
    page: int
    block_m: int
    tile: int
    warps: int
    stages: int

    @property
    def block_q(self) -> int:
        """Queries of one tile."""
        return self.block_m // (self.heads // self.kv_heads)


def shape_for(
    heads: int, kv_heads: int, size: int, page: int, longest_query: int, *, bits: int = 16, device: str | None = None
) -> Shape:
    """What was measured on a device of that name; without, what fits every chip. bits: of a key's number.

    Decode: as many rows as a group has, at least the 16 of a tensor core. Prefill: 64, which fits every chip; with
    heads wider than 64 over 8 warps (4 spill 40 bytes on sm_80 and sm_120)."""
    group = heads // kv_heads
    measured = tuned.attention_tile(device, group, size, page, longest_query) if device and bits == 16 else None
    if measured is not None:
        return Shape(heads, kv_heads, size, page, *(measured[name] for name in tuned.FIELDS))
    least = max(16, triton.next_power_of_2(group))
    decode = longest_query == 1
    block_m, tile = (least, 64) if decode else (max(64, least), 32 if size > 128 else 64)
    # (Two stages spill on sm_120 with wide heads, as 8-bit decode does on sm_100; three with 8 bits and wide heads.)
    wide = not decode and 64 < size <= 128 and bits == 16
    stages = 3 if wide or (bits == 8 and decode) else 2
    warps = 8 if size > 64 and (not decode or bits == 8) else 4  # (rows of 8 bits lie 4 bytes apart: many addresses)
    return Shape(heads, kv_heads, size, page, block_m, tile, warps, stages)


def shapes_of(
    heads: int, kv_heads: int, size: int, page: int, bits: int, device: str | None
) -> set[tuple[Shape, bool]]:
    """Those that `shape_for` gives for any number of queries, and whether that number is one."""
    queries = {1, 1024} | ({e["queries"] for e in tuned.table(device)} if device else set())
    return {(shape_for(heads, kv_heads, size, page, n, bits=bits, device=device), n == 1) for n in queries}


def decode_parts(
    heads: int, kv_heads: int, size: int, page: int, sequences: int, longest: int, place: torch.device, *, bits: int
) -> int:
    """The parts that `attention` splits the keys of decoding sequences into. bits: of a key's number."""
    shape = shape_for(heads, kv_heads, size, page, 1, bits=bits, device=name_of(place))
    return splits_for(sequences * kv_heads, longest, processors_of(place), shape.tile)


def splits_for(programs: int, longest: int, processors: int, tile: int) -> int:
    """Parts that the keys are split into: enough programs for twice the processors, none with less than two tiles.
    Continuous in batch size and length, so that nothing falls off a cliff."""
    wanted = -(-2 * processors // max(1, programs))
    return max(1, min(wanted, longest // (2 * tile), MAX_SPLITS))


@cache
def processors_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def name_of(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
