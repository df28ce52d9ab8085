"""The scheduler and its ledgers under any order of events: nothing is lost, nothing leaks, nothing is stale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from opsin_plugins.spec import Span
from opsin_server.engine.scheduling.encoder_cache import EncoderCache, Reservation
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Chunk, Encoding, Limits, Plan
from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter, ResidentAdapters
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import EncoderInput, Sequence, visual_keys
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import BACKGROUND, AdapterRef, Sampling

EOS = 0


@dataclass
class Launched:
    plan: Plan
    tokens: list[int | None]


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: submits, loads adapters, steps (drawing tokens of its own), cancels, in any order. Adapters
    with even numbers change what is kept of pictures."""

    @initialize(
        blocks=st.integers(4, 24),
        block_size=st.sampled_from([1, 3, 4, 8]),
        max_sequences=st.integers(1, 6),
        budget=st.integers(1, 24),
        encoder=st.integers(0, 40),
        prefix_cache=st.booleans(),
        pinned_during_decode=st.booleans(),
        run_ahead=st.booleans(),
        slots=st.integers(1, 3),
        host_copies=st.integers(1, 4),
    )
    def begin(
        self,
        blocks: int,
        block_size: int,
        max_sequences: int,
        budget: int,
        encoder: int,
        prefix_cache: bool,
        pinned_during_decode: bool,
        run_ahead: bool,
        slots: int,
        host_copies: int,
    ) -> None:
        """pinned_during_decode: images stand outside of the prompt, and the whole answer needs the last group of them.
        run_ahead: a step is committed after the next one has been launched."""
        self.blocks = BlockManager(blocks, block_size, prefix_cache)
        # (it must hold the largest image, or two that are seen at once: what the engine refuses never comes here)
        most = -(-6 // block_size) * (2 if pinned_during_decode else 1)
        self.encoder: EncoderCache[tuple[bytes, bytes]] = EncoderCache(
            encoder // 4 + most, block_size, pinned_during_decode
        )
        limits = Limits(max_sequences, blocks * block_size, budget, max_encode_patches=8)
        self.adapters: ResidentAdapters[bytes] = ResidentAdapters(slots, host_copies)
        self.scheduler = Scheduler(limits, self.blocks, self.encoder, self.adapters)
        self.loads: list[AdapterRef] = []
        self.in_slots: dict[int, bytes] = {}
        self.capacity = blocks * block_size
        self.alive: dict[str, Sequence] = {}
        self.written: dict[int, tuple[bytes, ...]] = {}  # what each block's rows hold, as a model would have left them
        self.encoded: dict[bytes, tuple[list[int], tuple[bytes, bytes], int]] = {}  # blocks, of what, and how much
        self.count = 0
        self.steps = 0
        self.run_ahead = run_ahead
        self.shadows: dict[str, list[int | None]] = {}  # tokens of each sequence, those on their way, too
        self.launched: list[Launched] = []

    @rule(
        length=st.integers(1, 20),
        family=st.integers(0, 2),
        images=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 3, 5])), max_size=2),
        max_tokens=st.integers(1, 12),
        adapter=st.integers(-3, 5),
        priority=st.sampled_from([0, 0, 0, -1, BACKGROUND, BACKGROUND + 1]),
    )
    def submit(
        self, length: int, family: int, images: list[tuple[int, int]], max_tokens: int, adapter: int, priority: int
    ) -> None:
        """images: names, from 3 on of videos, and visual tokens. adapter: its number; below 0, the base model's."""
        ref = None if adapter < 0 else AdapterRef(bytes([adapter]), str(length % 2))
        tokens = [(family * 7 + i) % 5 + 1 for i in range(length)]  # few families: prefixes are shared
        spans, items, pinned_during_decode = [], [], self.encoder.pinned_during_decode
        for name, rows in images:
            spans.append(Span(len(tokens), 1 if pinned_during_decode else rows, len(items)))
            digest, video = hashlib.sha256(bytes([name, rows])).digest(), name > 2 and not pinned_during_decode
            grid, patch_rows = ((rows, 2, 2), 2) if video else ((1, 2, 2 * rows), 1)
            items.append(Item(digest, grid, rows, (4 * rows * patch_rows, 3)))
            # (the second image joins the first one's group when nothing stands between them)
            tokens += [9] * spans[-1].length + [1] * (rows % 2)
        if len(tokens) + max_tokens > self.capacity:
            return
        self.count += 1
        sequence = Sequence(
            request_id=str(self.count),
            tokens=tokens,
            prompt_length=len(tokens),
            positions=np.arange(len(tokens), dtype=np.int32)[None],
            delta=0,
            spans=spans,
            items=items,
            pixels=(),
            sampling=Sampling(),
            max_tokens=max_tokens,
            eos=frozenset({EOS}),
            cache_root=b"" if ref is None else ref.digest,
            adapter=ref,
            priority=priority,
            visual_keys=visual_keys(items, b"", b"") if ref is None else (),
            encoder_inputs=self._encoder_inputs(spans, len(tokens)),
        )
        self.alive[sequence.request_id] = sequence
        self.shadows[sequence.request_id] = list(tokens)
        self.scheduler.add(sequence)

    def _encoder_inputs(self, spans: list[Span], length: int) -> list[EncoderInput]:
        if not self.encoder.pinned_during_decode:
            return [EncoderInput(s.item, s.start, s.start + s.length) for s in spans]
        groups: list[list[Span]] = []
        for span in spans:
            if groups and groups[-1][-1].start + 1 == span.start:
                groups[-1].append(span)
            else:
                groups.append([span])
        ends = [group[0].start for group in groups[1:]] + [None]
        return [EncoderInput(s.item, s.start, end) for group, end in zip(groups, ends, strict=False) for s in group]

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.scheduler.remove(self.alive.pop(name))

    @rule(kept=st.sets(st.integers(0, 5)))
    def keep(self, kept: set[int]) -> None:
        """By the operator; the sequences of all others must end all the same."""
        self.adapters.keep(AdapterRef(bytes([n]), "0") for n in sorted(kept)[: self.adapters.slots - 1])

    @rule(fails=st.integers(0, 9))
    def load(self, fails: int) -> None:
        """One adapter, of those that are asked for."""
        self.loads += self.adapters.take_wanted()
        if not self.loads:
            return
        ref = self.loads.pop(0)
        if fails:
            self.adapters.fill(ref.digest, LoadedAdapter(ref.digest, _changes(ref.digest)))
            return
        for sequence in self.scheduler.fail_adapter(ref):
            del self.alive[sequence.request_id]

    @rule(eos=st.integers(0, 9), fails=st.integers(0, 40))
    def step(self, eos: int, fails: int = 40) -> None:
        """fails 0: in the model, 1: while adapters are placed."""
        if self.launched and not self.scheduler.can_run_ahead():
            self._commit()
        before = len(self.launched)
        self._launch(eos, fails)
        while len(self.launched) > (1 if self.run_ahead and before < len(self.launched) else 0):
            self._commit()

    def _launch(self, eos: int, fails: int) -> None:
        plan = self.scheduler.schedule()
        for digest, (slot, loaded) in plan.place.items():
            self.in_slots[slot] = b"" if fails == 1 else loaded.weights
            if fails == 1:
                self.adapters.drop(digest)
        if plan.empty:
            return
        if fails == 0 or (fails == 1 and plan.place):
            for sequence in self.scheduler.fail(plan):
                del self.alive[sequence.request_id]
            return
        self.steps += 1
        sequences = [c.sequence for c in plan.chunks]
        assert len(set(map(id, sequences))) == len(sequences), "one chunk a sequence"
        assert sum(c.length for c in plan.chunks) <= self.scheduler.limits.max_batch_tokens
        lengths = [c.length == 1 for c in plan.chunks]
        assert lengths == sorted(lengths, reverse=True), "rows of decode stand first"
        for encoding in plan.encode:
            self._encode(encoding)
        for chunk in plan.chunks:
            digest = b"" if chunk.sequence.adapter is None else chunk.sequence.adapter.digest
            assert self.in_slots.get(chunk.sequence.adapter_slot, b"") == digest, "its own adapter lies in its slot"
            self._check_reads(chunk.sequence, chunk.start)
            for need in chunk.sequence.encoder_inputs:
                if need.touches(chunk.start, chunk.start + chunk.length):
                    found = self.encoder[chunk.sequence.visual_keys[need.item]]
                    assert found == (chunk.sequence.items[need.item].digest, _changes(digest)), "its own visual tokens"
            self._write(chunk.sequence, chunk.start, chunk.length)
        self.launched.append(Launched(plan, [self._drawn(c, eos) for c in plan.chunks if c.samples]))

    def _encode(self, encoding: Encoding) -> None:
        """Nothing is written behind a gap, or into blocks that another has by now."""
        sequence, key, done = encoding.sequence, encoding.key, encoding.first
        made_of = sequence.items[encoding.item].digest, _changes(self.in_slots.get(sequence.adapter_slot, b""))
        entry = self.encoder.blocks(key), made_of
        if done:
            assert self.encoded[key] == (*entry, done), "a video's layers come one after another"
        self.encoded[key] = (*entry, done + encoding.part.layers)
        if encoding.completes:
            self.encoder.fill(key, made_of)

    def _content(self, sequence: Sequence, at: int) -> bytes:
        """What the keys and values of one row depend on: all tokens up to it, and the images among them."""
        images = [(s.start, sequence.items[s.item].digest) for s in sequence.spans if s.start <= at]
        known = self.shadows[sequence.request_id][: at + 1], images, sequence.cache_root
        return hashlib.sha256(repr(known).encode()).digest()

    def _write(self, sequence: Sequence, start: int, length: int) -> None:
        size = self.blocks.block_size
        for at in range(start, start + length):
            rows = list(self.written.get(sequence.blocks[at // size], (b"",) * size))
            rows[at % size] = self._content(sequence, at)
            self.written[sequence.blocks[at // size]] = tuple(rows)

    def _check_reads(self, sequence: Sequence, start: int) -> None:
        """Every row that this chunk attends to holds what this very sequence would have written there."""
        size = self.blocks.block_size
        for at in range(start):
            assert self.written[sequence.blocks[at // size]][at % size] == self._content(sequence, at)

    def _drawn(self, chunk: Chunk, eos: int) -> int | None:
        """What the device draws, known to the sequence's shadow at once and to the scheduler when it commits."""
        token = None if eos == 9 else EOS if eos == 0 else chunk.draw % 5 + 2
        self.shadows[chunk.sequence.request_id].append(token)
        return token

    def _commit(self) -> None:
        step = self.launched.pop(0)
        alive = [c.sequence.request_id in self.alive for c in step.plan.chunks if c.samples]
        committed = self.scheduler.commit(step.plan, step.tokens)
        assert [c.row for c in committed] == [row for row, there in enumerate(alive) if there], "no result is lost"
        for one in committed:
            if one.finish:
                del self.alive[one.sequence.request_id]

    @invariant()
    def every_block_is_counted_once(self) -> None:
        if not hasattr(self, "blocks"):
            return
        assert self.blocks.used + self.blocks.cached + self.blocks.free == self.blocks.total
        launched = [c.sequence for step in self.launched for c in step.plan.chunks]
        held = {b for s in (*self.scheduler.running, *launched) for b in s.blocks}
        assert self.blocks.used == len(held)
        assert all(not s.blocks for s in self.scheduler.waiting)
        held = [block for key in self.encoder._blocks for block in self.encoder.blocks(key)]
        assert len(set(held)) == len(held) == self.encoder.used, "every encoder block is one picture's"
        if not self.scheduler.running and not self.launched:
            assert self.encoder.pinned == 0
        held_copies = len(self.adapters.on_host) + len(self.adapters._loading)
        assert held_copies <= self.adapters.host_copies

    def teardown(self) -> None:
        """Whatever happened, what is left finishes within bounded steps, and nothing stays used."""
        if not hasattr(self, "alive"):
            return
        for _ in range(200 * (len(self.alive) + 1)):
            if not self.alive and not self.launched:
                break
            self.load(fails=1)
            self.step(eos=1)
        assert not self.alive, "every request ends"
        assert self.blocks.used == 0
        assert self.encoder.pinned == 0
        assert self.adapters.idle


def _changes(digest: bytes) -> bytes:
    """Of the adapter with this digest: what it changes of pictures."""
    return digest if digest and digest[0] % 2 == 0 else b""


SchedulerMachine.TestCase.settings = settings(
    max_examples=500,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking a failure takes minutes, and the seed is printed anyway
    print_blob=True,
)
TestScheduler = SchedulerMachine.TestCase


def test_a_prompt_is_looked_up_once_however_long_it_waits() -> None:
    blocks = BlockManager(4, 4, prefix_cache=True)
    scheduler = Scheduler(Limits(4, 64, 64, 12), blocks, EncoderCache(0, 4))
    first, second = _sequence("a", 12), _sequence("b", 12)
    first.max_tokens = 1
    scheduler.add(first)
    plan = scheduler.schedule()
    assert plan.chunks
    scheduler.add(second)
    for _ in range(5):
        scheduler.schedule()  # no room for the second
    assert second in scheduler.waiting
    assert (blocks.queries, blocks.hits) == (12, 0)
    scheduler.commit(plan, [5])
    scheduler.schedule()
    assert (blocks.queries, blocks.hits) == (24, 0)


def test_an_image_that_cannot_be_encoded_ends_who_asked_for_it_without_a_chunk_too() -> None:
    """It waits for the second image of a group while the first is encoded."""
    encoder: EncoderCache[int] = EncoderCache(8, 4, pinned_during_decode=True)
    scheduler = Scheduler(Limits(4, 64, 64, 12), BlockManager(8, 4), encoder)
    sequence, digest = _sequence("a", 12), b"image"
    sequence.items, sequence.visual_keys = [Item(digest, (1, 2, 2), 4, (4, 3))], [digest]
    scheduler.add(sequence)
    scheduler.commit(scheduler.schedule(), [5])
    assert encoder.reserve(digest, 4, "a") is Reservation.RESERVED
    assert scheduler.fail_images(Plan([], [Encoding(sequence, 0, 0, sequence.items[0])]), {digest}) == [sequence]
    assert scheduler.running == []
    assert scheduler.blocks.used == encoder.pinned == len(encoder) == 0


def _sequence(name: str, length: int) -> Sequence:
    return Sequence(
        request_id=name, tokens=list(range(1, length + 1)), prompt_length=length,
        positions=np.arange(length, dtype=np.int32)[None], delta=0, spans=[], items=[], pixels=(),
        sampling=Sampling(), max_tokens=4, eos=frozenset({EOS}), cache_root=name.encode(),
    )  # fmt: skip
