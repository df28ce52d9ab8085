"""Which images a step encodes. Policy only: no torch, no tensors."""

from __future__ import annotations

from typing import Any

from opsin_server.engine.scheduling.encode_pace import EncodePace
from opsin_server.engine.scheduling.encoder_cache import EncoderCache, Reservation
from opsin_server.engine.scheduling.plan import Plan
from opsin_server.engine.scheduling.sequence import EncoderInput, Sequence


class ImagePlanner:
    """What a chunk of a sequence needs of images is there before the chunk is computed, within the room that the cache
    has and the time that a step may take for encoding."""

    def __init__(self, cache: EncoderCache[Any], pace: EncodePace) -> None:
        self.cache, self.pace = cache, pace

    def cut(self, plan: Plan, sequence: Sequence, length: int) -> int:
        """The visual tokens of every image that the chunk needs must be there or computed in this step; the chunk ends
        before the first image for which there is no room."""
        row = sequence.computed
        for need in sequence.encoder_inputs:
            if not need.touches(row, row + length):
                continue
            key, tokens = sequence.visual_keys[need.item], sequence.items[need.item].tokens
            if key not in self.cache and self._too_much(plan, sequence, need):
                return max(0, need.start - row)
            reserved = self.cache.reserve(key, tokens, sequence.request_id)
            if reserved is Reservation.FULL:
                return max(0, need.start - row)
            if reserved is Reservation.RESERVED:
                plan.encode.append((sequence, need.item))
        return length

    def waits_for_room(self, plan: Plan, sequence: Sequence) -> bool:
        """Whether it is the store that has no room, and not this step that has no time to encode more."""
        row = sequence.computed
        missing = (n for n in sequence.encoder_inputs if n.touches(row, row + 1))
        return any(
            sequence.visual_keys[n.item] not in self.cache and not self._too_much(plan, sequence, n) for n in missing
        )

    def unpin_computed(self, sequence: Sequence, stop: int) -> None:
        """Pictures of which no row from `stop` on needs anything."""
        for need in sequence.encoder_inputs:
            if need.stop is not None and need.stop <= stop:
                self.cache.unpin(sequence.visual_keys[need.item], sequence.request_id)

    def needed_elsewhere(self, plan: Plan, sequence: Sequence, item: int) -> bool:
        """Of a sequence that was preempted after its image was planned: does another chunk of this step need it?"""
        key = sequence.visual_keys[item]
        for chunk in plan.chunks:
            for need in chunk.sequence.encoder_inputs:
                touched = need.touches(chunk.start, chunk.stop)
                if touched and chunk.sequence.visual_keys[need.item] == key:
                    return True
        if key in self.cache:
            self.cache.drop(key)
        return False

    def _too_much(self, plan: Plan, sequence: Sequence, need: EncoderInput) -> bool:
        """Whether an image must wait for another step. Not when all that is encoded in this one are images without
        which this sequence's next row cannot be computed: they would be too much in every step."""
        patches = plan.patches + sequence.items[need.item].patches
        if plan.room is not None:
            return patches > plan.room.patches and len(plan.encode) >= plan.room.images
        if not plan.encode or patches <= self.pace.patches:
            return False
        alone = all(s is sequence for s, _ in plan.encode)
        return not (alone and need.touches(sequence.computed, sequence.computed + 1))
