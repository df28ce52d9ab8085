"""How many adapters have a slot on the device, of which rank, and how many a copy in the host's memory."""

from __future__ import annotations

import math

from opsin_plugins.blocks.adapter_slots import slot_bytes
from opsin_plugins.spec import Linears, ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.errors import ConfigError
from opsin_server.ipc.memory_messages import AdapterRoom

SHARE = 0.1  # of what the weights leave free, where nobody says how many slots there are
SLOTS = 8
RANKS = (64, 32, 16)  # the largest of which SLOTS fit; else as many of the smallest as do


def adapter_room(config: EngineConfig, spec: ModelSpec, linears: Linears, item: int, free: int) -> AdapterRoom:
    """item: bytes of a number. free: what the weights leave. No slots where not even one fits into the share. Raises
    ConfigError for what contradicts itself."""
    projectors = config.lora_projectors and spec.projector is not None
    rank = config.max_lora_rank
    if rank is None:
        wanted = config.max_loras or SLOTS
        fits = (r for r in RANKS if wanted * _bytes(spec, linears, r, projectors, item) <= free * SHARE)
        rank = next(fits, RANKS[-1])
    one = _bytes(spec, linears, rank, projectors, item)
    slots = min(SLOTS, int(free * SHARE) // one) if config.max_loras is None else config.max_loras
    copies = config.max_cpu_loras if config.max_cpu_loras is not None else slots
    if slots and copies < 1:
        raise ConfigError(f"--max-cpu-loras {copies}: an adapter is read into the host's memory before it has a slot")
    return AdapterRoom(slots, rank, copies, projectors, one) if slots else AdapterRoom()


def _bytes(spec: ModelSpec, linears: Linears, rank: int, projectors: bool, item: int) -> int:
    """What one slot takes."""
    projector = spec.projector if projectors else None
    trained = 0 if projector is None else sum(map(math.prod, projector.parameters().values()))
    return slot_bytes(linears, rank, item) + trained * item
