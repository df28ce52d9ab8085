"""Which images a step encodes, and how much of a long video. Policy only: no torch, no tensors."""

from __future__ import annotations

from typing import Any

from opsin_server.engine.scheduling.encode_pace import EncodePace
from opsin_server.engine.scheduling.encoder_cache import EncoderCache, Reservation
from opsin_server.engine.scheduling.plan import Encoding, Plan
from opsin_server.engine.scheduling.sequence import EncoderInput, Sequence


class ImagePlanner:
    """What a chunk of a sequence needs of images is there before the chunk is computed, within the room that the cache
    has and the time that a step may take for encoding."""

    def __init__(self, cache: EncoderCache[Any], pace: EncodePace) -> None:
        self.cache, self.pace = cache, pace

    def cut(self, plan: Plan, sequence: Sequence, length: int) -> int:
        """The visual tokens of every image that the chunk needs must be there or computed in this step; the chunk ends
        before the first image for which there is no room, or of which a part is left for later steps."""
        row = sequence.computed
        for need in sequence.encoder_inputs:
            if not need.touches(row, row + length):
                continue
            if not self._will_be_there(plan, sequence, need):
                return max(0, need.start - row)
        return length

    def _will_be_there(self, plan: Plan, sequence: Sequence, need: EncoderInput) -> bool:
        if self._is_whole(sequence, need):
            return self._reserve(sequence, need)
        return self._encode(plan, sequence, need)

    def _is_whole(self, sequence: Sequence, need: EncoderInput) -> bool:
        return self.cache.is_whole(sequence.visual_keys[need.item])

    def _reserve(self, sequence: Sequence, need: EncoderInput) -> bool:
        key, tokens = sequence.visual_keys[need.item], sequence.items[need.item].tokens
        return self.cache.reserve(key, tokens, sequence.request_id) is not Reservation.FULL

    def _encode(self, plan: Plan, sequence: Sequence, need: EncoderInput) -> bool:
        """What there is time and room for; whether the image is whole by that."""
        layers = self._layers(plan, sequence, need)
        if not layers or not self._reserve(sequence, need):
            return False
        key, item = sequence.visual_keys[need.item], sequence.items[need.item]
        encoding = Encoding(sequence, need.item, self.cache.begun(key), item.cut(layers))
        plan.encode.append(encoding)
        self.cache.advance(key, encoding.stop, encoding.completes)
        return encoding.completes

    def waits_for_room(self, plan: Plan, sequence: Sequence) -> bool:
        """Whether it is the store that has no room, and not this step that has no time to encode more."""
        row = sequence.computed
        missing = (n for n in sequence.encoder_inputs if n.touches(row, row + 1))
        return any(not self._is_whole(sequence, n) and self._layers(plan, sequence, n) for n in missing)

    def unpin_computed(self, sequence: Sequence, stop: int) -> None:
        """Pictures of which no row from `stop` on needs anything."""
        for need in sequence.encoder_inputs:
            if need.stop is not None and need.stop <= stop:
                self.cache.unpin(sequence.visual_keys[need.item], sequence.request_id)

    def stays(self, plan: Plan, encoding: Encoding) -> bool:
        """Of a sequence that holds nothing: it was preempted after its image was planned, or is not admitted before its
        video is whole. Does another chunk of this step need it, or is it a part of more?"""
        key = encoding.key
        if encoding.goes_on:  # (unless another took its blocks, and it has begun anew)
            return self.cache.is_whole(key) or self.cache.begun(key) >= encoding.stop
        for chunk in plan.chunks:
            for need in chunk.sequence.encoder_inputs:
                touched = need.touches(chunk.start, chunk.stop)
                if touched and chunk.sequence.visual_keys[need.item] == key:
                    return key in self.cache
        if key in self.cache:
            self.cache.drop(key)
        return False

    def _layers(self, plan: Plan, sequence: Sequence, need: EncoderInput) -> int:
        """How many of an image's layers this step has time for. One at least where the step encodes nothing yet, or
        nothing but images without which this sequence's next row cannot be computed: they would be too much in every
        step."""
        item = sequence.items[need.item]
        if plan.room is not None:
            owed = len(plan.encode) < plan.room.images
        else:
            alone = all(encoding.sequence is sequence for encoding in plan.encode)
            owed = not plan.encode or (alone and need.touches(sequence.computed, sequence.computed + 1))
        room = self.pace.patches if plan.room is None or owed else plan.room.patches
        fits = (room - plan.patches) // (item.patches // item.layers)
        return min(item.layers - self.cache.begun(sequence.visual_keys[need.item]), max(fits, int(owed)))
