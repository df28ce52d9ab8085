"""What the next step computes. Policy only: no torch, no tensors.

Each step: every running sequence that only lacks its newest token gets one row (decode); prompts that are part way go
on with what is left of the token budget; then waiting ones are admitted (`admission_order`, `adapter_turns`). So it is
for each priority, the most urgent first, and the background has what fits beside the others (`background_pace`). When
blocks run out, or a more urgent sequence has no place, the least urgent that runs, of those the one admitted last,
gives its blocks back and waits to be computed again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from collections.abc import Sequence as Seq
from typing import Any

from opsin_server.engine.scheduling.adapter_turns import AdapterTurns
from opsin_server.engine.scheduling.admission_order import AdmissionOrder
from opsin_server.engine.scheduling.background_pace import BackgroundPace
from opsin_server.engine.scheduling.encode_pace import EncodePace
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.image_planner import ImagePlanner
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Chunk, Committed, Finish, Limits, Plan
from opsin_server.engine.scheduling.resident_adapters import ResidentAdapters
from opsin_server.engine.scheduling.sequence import GuideError, Sequence, SequenceStatus, visual_keys
from opsin_server.ipc.messages import BACKGROUND, AdapterRef


class Scheduler:
    def __init__(
        self,
        limits: Limits,
        blocks: BlockManager,
        encoder: EncoderCache[Any],
        adapters: ResidentAdapters[Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.blocks, self.encoder, self.clock = limits, blocks, encoder, clock
        self.adapters: ResidentAdapters[Any] = ResidentAdapters(0) if adapters is None else adapters
        self.turns = AdapterTurns(self.adapters, limits.max_sequences)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of admission
        self.preemptions = 0
        self._size = blocks.block_size
        self.images = ImagePlanner(encoder, EncodePace(limits.max_encode_patches))
        self.background = BackgroundPace(self.images.pace, clock)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)
        if sequence.adapter is not None:
            sequence.adapter_tier = self.adapters.tier(sequence.adapter.digest)
            self.adapters.expect(sequence.adapter, sequence.request_id)

    def remove(self, sequence: Sequence) -> None:
        """Finished, cancelled or failed: its blocks and pins are free again, once no launched step touches them."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        self._release_if_idle(sequence)

    def _release_if_idle(self, sequence: Sequence) -> None:
        if not sequence.in_flight:
            self.blocks.release(sequence)
            self.encoder.unpin_all(sequence.request_id)
            if sequence.adapter is not None:
                self.adapters.forget(sequence.adapter, sequence.request_id)

    def fail_adapter(self, ref: AdapterRef) -> list[Sequence]:
        """Ends the sequences that wait for an adapter which cannot be loaded from where they say that it is."""
        self.adapters.fail(ref)
        failed = [sequence for sequence in self.waiting if sequence.adapter == ref]
        for sequence in failed:
            self.remove(sequence)
        return failed

    def schedule(self) -> Plan:
        """The next step, which counts as launched from here on: each plan must be committed, or failed."""
        plan, budget = Plan(), self.limits.max_batch_tokens
        plan.place |= self.adapters.place_kept()
        waited, wanted, admits = bool(self.waiting), set[bytes](), True
        priorities = sorted({s.priority for s in self.running} | {s.priority for s in self.waiting})
        background = next((priority for priority in priorities if priority >= BACKGROUND), None)
        for priority in priorities:
            if priority == background and plan.chunks:
                plan.room = self.background.room(plan)
                budget = min(budget, plan.room.tokens)
            if not budget:  # (most steps beside others have nothing for the background, of which there may be much)
                admits = False
                break
            preempted = self.preemptions
            budget = self._go_on(plan, priority, budget)
            if admits and self.preemptions == preempted:
                budget, admits = self._admit_waiting(plan, priority, budget, wanted if plan.room is None else set())
            else:
                admits = False
        if waited and (wanted or admits):  # (where everything runs that can, nobody was asked what it waits for)
            self.turns.settle(wanted, self.running)
        plan.chunks = [c for c in plan.chunks if c.sequence.blocks]  # (a later one may have preempted it)
        plan.chunks.sort(key=lambda chunk: chunk.length != 1)
        plan.encode = [e for e in plan.encode if e.sequence.blocks or self.images.stays(plan, e)]
        if plan.room is not None:
            behind = [chunk for chunk in plan.chunks if chunk.sequence.priority >= BACKGROUND]
            tokens = sum(chunk.length for chunk in behind if not chunk.decodes)
            self.background.took(tokens, sum(e.sequence.priority >= BACKGROUND for e in plan.encode))
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.stop
            chunk.sequence.pending += chunk.samples
            chunk.sequence.in_flight += 1
        return plan

    def _go_on(self, plan: Plan, priority: int, budget: int) -> int:
        """What runs already, of one priority; what is left of the budget."""
        decodes: list[Sequence] = []
        prompts: list[Sequence] = []
        for sequence in self.running:
            if sequence.priority == priority:
                (decodes if sequence.remaining == 1 else prompts).append(sequence)
        left = budget if plan.room is None else min(budget, plan.room.decode_tokens - plan.decode_tokens)
        for sequence in decodes:
            if left and self._goes_on(sequence):
                taken = self._decode(plan, sequence) or self._continue(plan, sequence, left)
                budget, left = budget - taken, left - taken
        for sequence in prompts:
            most = _for_prompts(plan, budget)
            if most > 0 and self._goes_on(sequence):
                budget -= self._continue(plan, sequence, most)
        return budget

    def _admit_waiting(self, plan: Plan, priority: int, budget: int, wanted: set[bytes]) -> tuple[int, bool]:
        """Of one priority; what is left of the budget, and whether nobody is left for whom there may be room. Nobody
        waits for another's adapter to be loaded, or for a slot that another waits for."""
        waiting = [sequence for sequence in self.waiting if sequence.priority == priority]
        if not waiting:
            return budget, True
        order = AdmissionOrder(waiting, (s for s in self.running if s.priority == priority))
        while (most := _for_prompts(plan, budget)) > 0 and self._may_admit(priority) and (sequence := order.next()):
            if sequence.adapter is not None and not self._take_slot(plan, sequence, wanted):
                order.passed(sequence)
                continue
            taken = self._admit(plan, sequence, most)
            if not taken:
                break
            order.admitted(sequence)
            if sequence.adapter is not None:
                self.turns.joined(sequence.adapter.digest)
            budget -= taken
        return budget, order.next() is None

    def _take_slot(self, plan: Plan, sequence: Sequence, wanted: set[bytes]) -> bool:
        """Whether a sequence's adapter is in a slot, or will be when the plan is launched. wanted: takes note of one
        that is loaded and finds none."""
        ref = sequence.adapter
        assert ref is not None
        if not self.turns.may_join(ref.digest):
            return False
        reserved = self.adapters.reserve(ref, sequence.request_id)
        if reserved is None and self.adapters.is_ready(ref.digest) and self._free_slot(sequence):
            reserved = self.adapters.reserve(ref, sequence.request_id)
        if reserved is None:
            if self.adapters.is_ready(ref.digest):
                wanted.add(ref.digest)
            return False
        sequence.adapter_slot, loaded = reserved
        if loaded is not None:
            plan.place[ref.digest] = sequence.adapter_slot, loaded
            self.turns.begin(ref.digest)
        sequence.visual_keys = visual_keys(sequence.items, sequence.salt, self.adapters.changes_pictures(ref))
        return True

    def _free_slot(self, sequence: Sequence) -> bool:
        """Preempts whoever holds a slot, where all are less urgent; of several slots, that of the least urgent."""
        most_urgent: dict[bytes, int] = {}
        for other in self.running:
            if other.adapter is not None:
                digest = other.adapter.digest
                most_urgent[digest] = min(most_urgent.get(digest, other.priority), other.priority)
        held = self.adapters.released_by(tuple(most_urgent))
        victim = max(held, key=most_urgent.__getitem__, default=None)
        if victim is None or most_urgent[victim] <= sequence.priority:
            return False
        for other in [s for s in self.running if s.adapter is not None and s.adapter.digest == victim]:
            self._preempt(other)
        return True

    def can_run_ahead(self) -> bool:
        """Whether the next step can be scheduled before the results of the last are known: nobody has to be preempted
        for it, since a launched step may still write to the blocks of every sequence."""
        if self.encoder.pinned_during_decode and any(s.computed < s.prompt_length for s in self.running):
            return False  # (a prompt may wait for images that answers hold)
        if self.waiting and self.running and self._yields_to(min(s.priority for s in self.waiting)):
            return False
        return self._wanted(self.running) <= self.blocks.free + self.blocks.cached

    def _wanted(self, sequences: Iterable[Sequence]) -> int:
        """Blocks that all their tokens need beside those that they have."""
        return sum(max(0, self.blocks.blocks_for(s.length) - len(s.blocks)) for s in sequences)

    def commit(self, plan: Plan, tokens: Seq[int | None]) -> list[Committed]:
        """Takes note of a step's results. tokens: one of each chunk that samples, in order; None: there is no number.
        What was drawn for a sequence that has finished meanwhile is dropped."""
        committed, row = [], -1
        for chunk in plan.chunks:
            sequence = chunk.sequence
            row += chunk.samples
            self._land(chunk)
            if sequence.status is SequenceStatus.FINISHED:
                self._release_if_idle(sequence)
                continue
            token = tokens[row] if chunk.samples else None
            if chunk.samples and token is None:
                self.remove(sequence)
                committed.append(Committed(sequence, row, -1, "error"))
                continue
            if chunk.start // self._size != chunk.stop // self._size:
                self.blocks.publish(sequence, chunk.start, chunk.stop)
            if chunk.start < sequence.needs_images_until:
                self.images.unpin_computed(sequence, chunk.stop)
            if token is not None:
                committed.append(self._append(sequence, row, token))
        return committed

    def fail(self, plan: Plan) -> list[Sequence]:
        """Ends the sequences of a step that could not be computed; returns those that had not finished before."""
        failed = []
        for chunk in plan.chunks:
            self._land(chunk)
            if chunk.sequence.status is SequenceStatus.FINISHED:
                self._release_if_idle(chunk.sequence)
            else:
                failed.append(chunk.sequence)
                self.remove(chunk.sequence)
        self.encoder.drop_unfilled()
        return failed

    def fail_images(self, plan: Plan, broken: Collection[bytes]) -> list[Sequence]:
        """Ends the sequences of a plan that need an image, by key, that cannot be encoded; the plan goes on without
        them. One that waits for further images of a group has no chunk that needs this one, or none at all."""
        askers = {e.sequence.request_id: e.sequence for e in plan.encode if e.key in broken}

        def needs(chunk: Chunk) -> bool:
            sequence = chunk.sequence
            return sequence.request_id in askers or any(
                need.touches(chunk.start, chunk.stop) and sequence.visual_keys[need.item] in broken
                for need in sequence.encoder_inputs
            )

        lost = Plan([chunk for chunk in plan.chunks if needs(chunk)])
        plan.chunks = [chunk for chunk in plan.chunks if not needs(chunk)]
        failed = self.fail(lost)
        without_chunk = [s for s in askers.values() if s.status is not SequenceStatus.FINISHED]
        for sequence in without_chunk:
            self.remove(sequence)
        return failed + without_chunk

    def _land(self, chunk: Chunk) -> None:
        chunk.sequence.in_flight -= 1
        chunk.sequence.pending -= chunk.samples

    def _append(self, sequence: Sequence, row: int, token: int) -> Committed:
        sequence.tokens.append(token)
        finish: Finish | None = None
        why = ""
        try:
            if token in sequence.eos:
                finish = "stop"
            elif sequence.guide is not None and sequence.guide.accept(token):
                finish = "complete"
            elif self._is_full(sequence, len(sequence.tokens)):
                finish = "length"
        except GuideError as error:
            finish, why = "error", str(error)
        if finish:
            self.remove(sequence)
        return Committed(sequence, row, token, finish, why)

    def _is_full(self, sequence: Sequence, length: int) -> bool:
        return length - sequence.prompt_length >= sequence.max_tokens or length >= self.limits.max_context

    def _goes_on(self, sequence: Sequence) -> bool:
        """Not when it was preempted in this very step, or the token that is still on its way is its last."""
        return sequence.status is SequenceStatus.RUNNING and not (
            sequence.pending and self._is_full(sequence, sequence.length)
        )

    def _may_admit(self, priority: int) -> bool:
        return len(self.running) < self.limits.max_sequences or self._yields_to(priority)

    def _yields_to(self, priority: int) -> bool:
        return self._last().priority > priority

    def _last(self) -> Sequence:
        """Who gives way first: of the least urgent that run, the one admitted last."""
        return max(reversed(self.running), key=lambda sequence: sequence.priority)

    def _decode(self, plan: Plan, sequence: Sequence) -> int:
        """The common case of `_continue`, in a fifth of its time: one token, that needs neither a picture nor a block.
        0: it is not that."""
        if sequence.computed < sequence.needs_images_until or len(sequence.blocks) <= sequence.computed // self._size:
            return 0
        plan.chunks.append(Chunk(sequence, sequence.computed, 1, samples=True))
        return 1

    def _continue(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        length = self.images.cut(plan, sequence, min(sequence.remaining, budget))
        while not length and self.encoder.pinned_during_decode and self.images.waits_for_room(plan, sequence):
            # What it waits for is held by answers that may be long, or that wait for it in turn.
            if self._preempt(self._last()) is sequence:
                return 0
            length = self.images.cut(plan, sequence, min(sequence.remaining, budget))
        while length and not self.blocks.grow(sequence, sequence.computed + length):
            if self._preempt(self._last()) is sequence:
                return 0
        return self._chunk(plan, sequence, length)

    def _admit(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        self.blocks.adopt_prefix(sequence)
        length = min(sequence.remaining, budget)
        length = self.images.cut(plan, sequence, length) if self._can_finish_prompt(sequence) else 0
        if not length:
            self._give_back(sequence)
            return 0
        if not self._make_room(sequence):
            self._give_back(sequence)
            return 0
        self.blocks.grow(sequence, sequence.computed + length)
        if sequence.queue_seconds is None:
            sequence.queue_seconds = self.clock() - sequence.arrived
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_length)
            self.blocks.count(sequence)
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        return self._chunk(plan, sequence, length)

    def _can_finish_prompt(self, sequence: Sequence) -> bool:
        """Beside all that run, and what their prompts still want: otherwise two large prompts would preempt each other
        in turn, and each begin again. What the less urgent have is counted as if it were free."""
        ahead = [s for s in self.running if s.priority <= sequence.priority]
        yields = (
            0
            if len(ahead) == len(self.running)
            else sum(len(s.blocks) for s in self.running if s.priority > sequence.priority)
        )
        return self._wanted((*ahead, sequence)) <= self.blocks.free + self.blocks.cached + yields

    def _make_room(self, sequence: Sequence) -> bool:
        """Whether there is a place, and blocks for all of its prompt: at the cost of the less urgent."""
        while not self._has_room(sequence):
            if not (self.running and self._yields_to(sequence.priority)):
                return False
            self._preempt(self._last())
        return True

    def _has_room(self, sequence: Sequence) -> bool:
        free = self.blocks.free + self.blocks.cached
        ahead = [s for s in self.running if s.priority <= sequence.priority]
        return len(self.running) < self.limits.max_sequences and self._wanted((*ahead, sequence)) <= free

    def _chunk(self, plan: Plan, sequence: Sequence, length: int) -> int:
        if length:
            samples = sequence.computed + length == sequence.length
            plan.chunks.append(Chunk(sequence, sequence.computed, length, samples))
        return length

    def _preempt(self, victim: Sequence) -> Sequence:
        """Recomputed later from its tokens; whole blocks may be found again in the prefix cache."""
        assert not victim.in_flight, "see can_run_ahead"
        self.running.remove(victim)
        victim.status = SequenceStatus.WAITING
        self._give_back(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1
        return victim

    def _give_back(self, sequence: Sequence) -> None:
        """What one that waits (again) does not hold."""
        self.blocks.release(sequence)
        self.encoder.unpin_all(sequence.request_id)
        if sequence.adapter is not None:
            self.adapters.unpin(sequence.adapter, sequence.request_id)


def _for_prompts(plan: Plan, budget: int) -> int:
    """How much of a step's tokens prompts may have."""
    return budget if plan.room is None else min(budget, plan.room.prompt_tokens - plan.prompt_tokens)
