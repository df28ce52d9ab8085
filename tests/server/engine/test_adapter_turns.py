"""More adapters than slots, and one that floods the queue: everybody has a turn, and the base model is not slowed."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import count
from typing import Any

import numpy as np
import pytest

from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Limits
from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter, ResidentAdapters
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.ipc.messages import AdapterRef, Sampling

SIZE, PROMPT = 16, 8


class Played:
    """An engine that draws a token a step for whoever has a chunk. Time is steps; a load takes some of them."""

    def __init__(self, slots: int, sequences: int = 16, host_copies: int | None = None, load_steps: int = 3) -> None:
        self.now = 0
        limits = Limits(sequences, 4096, 256, 12)
        self.adapters: ResidentAdapters[Any] = ResidentAdapters(slots, host_copies)
        blocks, cache = BlockManager(4096, SIZE, False), EncoderCache[Any](8, SIZE, False)
        self.scheduler = Scheduler(limits, blocks, cache, self.adapters, clock=lambda: float(self.now))
        self.numbers = count()
        self.load_steps, self.loading = load_steps, list[tuple[int, AdapterRef]]()
        self.placed: list[bytes] = []
        self.loads = 0
        self.waits: dict[int, list[float]] = defaultdict(list)
        self.done = 0

    def submit(self, adapter: int, tokens: int) -> Sequence:
        ref = None if adapter == 0 else AdapterRef(adapter.to_bytes(2, "big"), "")
        sequence = Sequence(
            request_id=str(next(self.numbers)),
            tokens=[1] * PROMPT,
            prompt_length=PROMPT,
            positions=np.arange(PROMPT, dtype=np.int32)[None],
            delta=0,
            spans=(),
            items=(),
            pixels=(),
            sampling=Sampling(),
            max_tokens=tokens,
            eos=frozenset(),
            cache_root=b"",
            adapter=ref,
            arrived=float(self.now),
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        self.now += 1
        for ref in self.adapters.take_wanted():
            self.loading.append((self.now + self.load_steps, ref))
            self.loads += 1
        for ready, ref in [one for one in self.loading if one[0] <= self.now]:
            self.loading.remove((ready, ref))
            self.adapters.fill(ref.digest, LoadedAdapter(None, b""))
        before = {s.request_id for s in self.scheduler.running}
        plan = self.scheduler.schedule()
        self.placed += plan.place
        for sequence in self.scheduler.running:
            if sequence.request_id not in before and sequence.queue_seconds is not None:
                number = 0 if sequence.adapter is None else int.from_bytes(sequence.adapter.digest, "big")
                self.waits[number].append(sequence.queue_seconds)
        committed = self.scheduler.commit(plan, [7] * sum(chunk.samples for chunk in plan.chunks))
        self.done += sum(one.finish is not None for one in committed)

    def run(self) -> None:
        while self.scheduler.waiting or self.scheduler.running:
            self.step()
            assert self.now < 100_000


def test_one_adapter_more_than_slots_in_turns() -> None:
    """The worst order that there is for a cache of 8: all make progress, and none waits longer than a few answers."""
    played = Played(slots=8)
    for _ in range(20):
        for adapter in range(1, 10):
            played.submit(adapter, 20)
        for _ in range(20):
            played.step()
    played.run()
    assert played.done == 20 * 9
    longest = {adapter: max(waits) for adapter, waits in played.waits.items()}
    assert max(longest.values()) <= 5 * 20
    assert min(len(waits) for waits in played.waits.values()) == 20


def test_a_cold_adapter_gets_a_slot_though_the_others_never_rest() -> None:
    """Two adapters have the two slots, with new requests in every step; a third comes once."""
    played = Played(slots=2, sequences=8)
    for _ in range(30):
        played.submit(1, 30)
        played.submit(2, 30)
        played.step()
    played.submit(3, 5)
    began = played.now
    while not played.waits[3]:
        played.submit(1, 30)
        played.submit(2, 30)
        played.step()
        assert played.now - began < 200
    assert played.waits[3][0] <= 3 * 30 + played.load_steps


def test_a_flood_holds_up_the_others_by_one_answer() -> None:
    played = Played(slots=4, sequences=4)
    for _ in range(200):
        played.submit(1, 10)
    played.step()
    late = [played.submit(adapter, 10) for adapter in (0, 2, 3, 0)]
    played.run()
    assert all(sequence.queue_seconds is not None and sequence.queue_seconds <= 25 for sequence in late)
    assert max(played.waits[1]) > 300


def test_without_adapters_it_is_first_come_first_served() -> None:
    played = Played(slots=0, sequences=2)
    asked = [played.submit(0, 3) for _ in range(20)]
    played.run()
    waits = [sequence.queue_seconds for sequence in asked]
    assert waits == sorted(waits, key=lambda wait: wait or 0.0)


@pytest.mark.parametrize("host_copies", [8, 40])
def test_zipf_over_many_adapters_does_not_thrash(host_copies: int) -> None:
    """40 adapters, 8 slots: slots are filled anew for few of the requests, and files read once where all have room."""
    played = Played(slots=8, sequences=32, host_copies=host_copies)
    chance = random.Random(0)
    weights = [1 / rank for rank in range(1, 41)]
    for _ in range(600):
        played.submit(chance.choices(range(1, 41), weights)[0], chance.randrange(5, 30))
        played.step()
    played.run()
    assert played.done == 600
    assert len(played.placed) < 300
    if host_copies == 40:
        assert played.loads == len(played.waits)


def test_kept_adapters_are_there_before_they_are_asked_for() -> None:
    played = Played(slots=3)
    played.adapters.keep([AdapterRef((1).to_bytes(2, "big"), "")])
    for _ in range(10):
        played.step()
    assert played.submit(1, 5).adapter_tier == "slot"
    played.run()
    for adapter in range(2, 12):
        played.submit(adapter, 5)
        played.run()
    assert played.submit(1, 5).adapter_tier == "slot"


def test_tiers_are_told_as_they_were_found() -> None:
    played = Played(slots=1, host_copies=2)
    tiers = []
    for adapter in (1, 1, 2, 1, 3, 2):
        tiers.append(played.submit(adapter, 3).adapter_tier)
        played.run()
    assert tiers == ["disk", "slot", "disk", "host", "disk", "disk"]
