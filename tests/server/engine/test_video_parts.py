"""A long video is encoded in the course of several steps."""

from __future__ import annotations

import numpy as np
import pytest

from opsin_server.engine.scheduling.encode_pace import EncodePace
from opsin_server.engine.scheduling.encoder_cache import EncoderCache, Reservation
from opsin_server.engine.scheduling.image_planner import ImagePlanner
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Limits, Plan
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import EncoderInput, Sequence
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import Sampling


def _video_first(name: str, video: bytes, layers: int) -> Sequence:
    """Its prompt begins with a video, of a visual token a layer: it is not admitted before that is whole."""
    return Sequence(
        request_id=name, tokens=[1] * (layers + 1), prompt_length=layers + 1,
        positions=np.arange(layers + 1, dtype=np.int32)[None], delta=0, spans=[],
        items=[Item(video, (layers, 2, 2), layers, (8 * layers, 3))], pixels=(), sampling=Sampling(), max_tokens=4,
        eos=frozenset(), cache_root=name.encode(), visual_keys=[video], encoder_inputs=[EncoderInput(0, 0, layers)],
    )  # fmt: skip


def _encoded(scheduler: Scheduler) -> list[tuple[bytes, int, int]]:
    """What the next step encodes, which is whole then where it says so."""
    plan = scheduler.schedule()
    for encoding in plan.encode:
        if encoding.completes:
            scheduler.encoder.fill(encoding.key, 1)
    scheduler.commit(plan, [5 for chunk in plan.chunks if chunk.samples])
    return [(encoding.key, encoding.first, encoding.stop) for encoding in plan.encode]


def test_a_long_video_is_encoded_in_the_course_of_steps_and_goes_on_for_whoever_wants_it() -> None:
    scheduler = Scheduler(Limits(4, 64, 64, 8), BlockManager(16, 4), EncoderCache(2, 4))
    first, second = _video_first("a", b"video", 5), _video_first("b", b"video", 5)
    scheduler.add(first)
    assert _encoded(scheduler) == [(b"video", 0, 2)]
    scheduler.remove(first)
    scheduler.add(second)
    assert _encoded(scheduler) == [(b"video", 2, 4)]
    assert scheduler.waiting
    assert _encoded(scheduler) == [(b"video", 4, 5)]
    assert scheduler.running == [second]
    assert (scheduler.encoder.queries, scheduler.encoder.hits) == (1, 0)


@pytest.mark.parametrize("why", ["another took its blocks", "a step failed"])
def test_what_was_encoded_of_a_video_and_is_gone_is_encoded_anew(why: str) -> None:
    scheduler = Scheduler(Limits(4, 64, 64, 8), BlockManager(16, 4), EncoderCache(2, 4))
    first, other = _video_first("a", b"video", 5), _video_first("b", b"other", 6)
    scheduler.add(first)
    assert _encoded(scheduler) == [(b"video", 0, 2)]
    if why == "a step failed":
        plan = scheduler.schedule()
        assert scheduler.fail(plan) == []
    else:
        scheduler.remove(first)
        scheduler.add(other)
        assert [_encoded(scheduler) for _ in range(3)] == [[(b"other", at, at + 2)] for at in (0, 2, 4)]
        scheduler.remove(other)
        scheduler.add(_video_first("c", b"video", 5))
    assert [_encoded(scheduler) for _ in range(3)] == [[(b"video", at, min(5, at + 2))] for at in (0, 2, 4)]


def test_a_part_of_a_video_whose_blocks_another_took_in_the_same_step_is_left_out() -> None:
    encoder: EncoderCache[int] = EncoderCache(2, 4)
    planner, plan, sequence = ImagePlanner(encoder, EncodePace(8)), Plan(), _video_first("a", b"video", 5)
    assert planner.cut(plan, sequence, 6) == 0
    (part,) = plan.encode
    encoder.unpin_all("a")
    assert planner.stays(plan, part)
    assert encoder.reserve(b"other", 8, "b") is Reservation.RESERVED
    assert not planner.stays(plan, part)
    encoder.unpin_all("b")
    assert encoder.reserve(b"video", 5, "c") is Reservation.RESERVED
    encoder.advance(b"video", 1, whole=False)
    assert not planner.stays(plan, part)
