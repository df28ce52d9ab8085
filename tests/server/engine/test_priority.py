"""The more urgent goes first, takes the place of the less urgent, and the background has what the others leave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin_server.engine.scheduling.background_pace import EVERY, PICTURE_SECONDS, STRETCH, BackgroundPace
from opsin_server.engine.scheduling.encode_pace import ENCODE_SECONDS, EncodePace
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Chunk, Limits, Plan
from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter, ResidentAdapters
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.scheduling.sequence import EncoderInput, Sequence
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import BACKGROUND, AdapterRef, Sampling
from support import engines, oracle, tiny
from support.engines import Asked

SIZE, PROMPT = 4, 8


def sequence(name: str, priority: int, adapter: AdapterRef | None = None, picture: bytes = b"") -> Sequence:
    """picture: its name, of one that the whole prompt needs."""
    return Sequence(
        request_id=name, tokens=list(range(1, PROMPT + 1)), prompt_length=PROMPT,
        positions=np.arange(PROMPT, dtype=np.int32)[None], delta=0, spans=[],
        items=[Item(picture, (1, 2, 2), 4, (4, 3))] if picture else [], pixels=(), sampling=Sampling(), max_tokens=20,
        eos=frozenset(), cache_root=name.encode(), adapter=adapter, priority=priority,
        visual_keys=[picture] if picture else (), encoder_inputs=[EncoderInput(0, 0, PROMPT)] if picture else (),
    )  # fmt: skip


class Played:
    """A scheduler whose steps draw a token for whoever has a chunk."""

    def __init__(self, sequences: int = 2, blocks: int = 100, budget: int = 64, slots: int = 0) -> None:
        self.now = 100.0
        self.adapters: ResidentAdapters[bytes] = ResidentAdapters(slots, 4)
        encoder: EncoderCache[bytes] = EncoderCache(100, SIZE)
        limits, ledger = Limits(sequences, 400, budget, 1000), BlockManager(blocks, SIZE, False)
        self.scheduler = Scheduler(limits, ledger, encoder, self.adapters, clock=lambda: self.now)

    def add(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.add(one)
        for ref in self.adapters.take_wanted():
            self.adapters.fill(ref.digest, LoadedAdapter(b"", b""))

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        for encoding in plan.encode:
            self.scheduler.encoder.fill(encoding.key, b"")
        self.scheduler.commit(plan, [1 for chunk in plan.chunks if chunk.samples])
        return plan

    @property
    def running(self) -> list[str]:
        return [one.request_id for one in self.scheduler.running]


def test_the_more_urgent_is_admitted_first_and_among_equals_who_came_first() -> None:
    played = Played(sequences=3)
    played.add(*(sequence(name, priority) for name, priority in [("a", 5), ("b", 0), ("c", -1), ("d", 0)]))
    played.step()
    assert played.running == ["c", "b", "d"]


@pytest.mark.parametrize("short_of", ["sequences", "blocks"])
def test_the_more_urgent_takes_the_place_of_the_least_urgent_and_of_those_the_newest(short_of: str) -> None:
    played = Played(sequences=3) if short_of == "sequences" else Played(sequences=9, blocks=10)
    played.add(sequence("low", 1), sequence("lower 1", 2), sequence("lower 2", 2))
    played.step()
    played.add(sequence("high", 0), sequence("lowest", 3))
    assert not played.scheduler.can_run_ahead(), "blocks of a launched step are not taken away"
    played.step()
    assert played.running == ["low", "lower 1", "high"]
    assert played.scheduler.preemptions == 1
    played.scheduler.remove(played.scheduler.running[-1])
    played.step()
    assert played.running == ["low", "lower 1", "lower 2"], "who was preempted goes on before the less urgent begin"


def test_nobody_is_preempted_for_what_would_not_fit_all_the_same() -> None:
    played = Played(sequences=9, blocks=10)
    played.add(sequence("even", 0), sequence("low", 1))
    played.step()
    long = sequence("long", 0)
    long.tokens = long.tokens * 4
    played.add(long)
    for _ in range(3):
        played.step()
    assert (played.running, played.scheduler.preemptions) == (["even", "low"], 0)


def test_blocks_that_run_out_are_taken_from_the_least_urgent_whoever_came_last() -> None:
    played = Played(sequences=9, blocks=6)
    played.add(sequence("low", 1), sequence("high", 0))
    for _ in range(10):
        played.step()
    assert played.running == ["high"]


def test_a_slot_is_taken_from_the_less_urgent_only() -> None:
    played = Played(sequences=9, slots=1)
    played.add(sequence("low", 1, AdapterRef(b"a", "")))
    played.step()
    played.add(sequence("even", 1, AdapterRef(b"b", "")))
    played.step()
    assert played.running == ["low"]
    played.add(sequence("high", 0, AdapterRef(b"c", "")))
    played.step()
    assert played.running == ["high"]


def test_the_background_has_steps_of_its_own_and_beside_others_what_they_do_not_feel() -> None:
    played = Played(sequences=9)
    played.add(*(sequence(f"batch {i}", BACKGROUND + i % 2) for i in range(4)))
    assert len(played.step().chunks) == 4, "alone, it is as any other"
    for tokens in (1, 2, 4, 8) * 50:
        played.scheduler.background.observe(tokens, 0.010 + 0.0005 * tokens, decodes=True)
    played.scheduler.background.observe(1, 0.020, decodes=True)  # what the machine did besides
    played.add(sequence("chat", 0))
    played.step()
    chunks = {chunk.sequence.request_id: chunk.length for chunk in played.step().chunks}
    assert chunks.pop("chat") == 1
    assert sum(chunks.values()) == 3, "as many as make a step of 10.5 ms by 15 % longer"


def test_a_picture_of_the_background_waits_for_a_pause_but_not_for_ever() -> None:
    played = Played(sequences=9)
    for tokens in (1, 64) * 50:
        for decodes in (False, True):
            played.scheduler.background.observe(tokens, 0.020, decodes)
    played.add(sequence("chat", 0), *(sequence(f"batch {i}", BACKGROUND, picture=b"%d" % i) for i in range(3)))
    encoded = [len(played.step().encode) for _ in range(5)]
    assert encoded == [1, 0, 0, 0, 0]
    played.now += PICTURE_SECONDS
    assert [len(played.step().encode) for _ in range(5)] == [1, 0, 0, 0, 0]
    played.scheduler.remove(next(one for one in played.scheduler.running if one.request_id == "chat"))
    assert len(played.step().encode) == 1, "now it is alone"


def beside(tokens: int) -> Plan:
    """Of others, who decode."""
    return Plan([Chunk(sequence(str(i), 0), PROMPT, 1, samples=True) for i in range(tokens)])


def test_what_fits_beside_others_follows_from_what_steps_took() -> None:
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    assert sum(pace.room(beside(4)).tokens for _ in range(100)) in range(9, 12), "nothing is known"
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    for tokens in (1, 2, 4, 8, 256) * 50:
        pace.observe(tokens, 0.004 + 0.001 * tokens, decodes=True)
    few = [pace.room(beside(1)).tokens for _ in range(100)]
    assert set(few) == {0, 1}, "less than a token fits, and they add up"
    assert sum(few) == pytest.approx(100 * STRETCH * (0.004 + 0.001) / 0.001, abs=2)
    assert pace.room(beside(100)).tokens <= 2, "no time is saved up"
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    for tokens in (1, 4, 64, 256, 2048) * 50:
        pace.observe(tokens, max(0.020, 0.0001 * tokens), decodes=True)
    assert 64 - 4 < pace.room(beside(4)).tokens < 256, "a device that has room for more in every step"
    for _ in range(200):
        pace.observe(64, 0.040, decodes=True)
    assert pace.room(beside(4)).tokens < 20, "and no longer"


def test_prompts_whose_first_token_costs_much_have_one_step_in_many_and_what_was_saved_up() -> None:
    """As where a step that only decodes replays a graph of 6 ms, and every other takes 15 ms and more."""
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    for tokens in (1, 2, 4, 8, 16) * 50:
        pace.observe(tokens, 0.006, decodes=True)
    for tokens in (4, 64, 512, 2048) * 50:
        pace.observe(tokens, 0.015 + 0.00001 * tokens, decodes=False)
    rooms = []
    for _ in range(2 * EVERY):
        room = pace.room(beside(4))
        pace.took(tokens=room.prompt_tokens, pictures=0)
        rooms.append(room)
    assert all(room.tokens >= 8 for room in rooms), "answers of the background go on in every step"
    long = [i for i, room in enumerate(rooms) if room.prompt_tokens]
    assert long == [EVERY - 1, 2 * EVERY - 1]
    half = ENCODE_SECONDS / 2  # the other is for pictures
    assert rooms[long[0]].prompt_tokens == pytest.approx((0.006 + half - 0.015) / 0.00001, rel=0.1)
    assert pace.room(beside(4)).prompt_tokens == 0, "what was saved is spent"
    assert pace.room(beside(2)).prompt_tokens == 0, "nor where smaller steps were never tried"


STEPS = st.lists(
    st.tuples(st.integers(1, 500), st.sampled_from((0.001, 0.002, 0.020)) | st.floats(0.0, 1.0), st.booleans()),
    max_size=12,
)


@given(STEPS, st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_there_is_a_room_beside_whatever_steps_took(steps: list[tuple[int, float, bool]], others: list[int]) -> None:
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    for step in steps:
        pace.observe(*step)
    for tokens in [*others, *[others[0]] * EVERY, *others]:
        room = pace.room(beside(tokens))
        assert min(room.tokens, room.decode_tokens, room.prompt_tokens) >= 0
        pace.took(room.prompt_tokens, pictures=0)


def test_prompts_add_up_where_their_tokens_cost_what_others_do() -> None:
    pace = BackgroundPace(EncodePace(1000), lambda: 0.0)
    for tokens in (1, 2, 4, 8, 256) * 50:
        for decodes in (False, True):
            pace.observe(tokens, 0.004 + 0.001 * tokens, decodes)
    rooms = [pace.room(beside(1)) for _ in range(100)]
    assert [room.prompt_tokens for room in rooms] == [room.tokens for room in rooms]
    assert sum(room.tokens for room in rooms) > 50


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> oracle.Ours:
    return oracle.saved(tiny.FAMILIES["qwen2_vl"].make(), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("ahead", [False, True])
def test_preempted_by_the_more_urgent_and_resumed_answers_are_the_same(ours: oracle.Ours, ahead: bool) -> None:
    asked = [
        Asked([5, tiny.IMAGE_TOKEN, 7, 3 + i], [oracle.picture(i, 40, 30)], 30, priority=priority)
        for i, priority in enumerate([BACKGROUND, BACKGROUND, 3, 0, -1])
    ]
    alone = [engines.ask(engines.make_engine(ours), ours, [one])[0].tokens for one in asked]
    engine = engines.make_engine(ours, max_sequences=2)
    engine.run_ahead = ahead
    answers: dict[str, engines.Answer] = {}
    ended: list[str] = []

    def step() -> None:
        outputs = engine.step()
        engines.collect(outputs, answers)
        ended.extend(output.request_id for output in outputs if output.finish)

    for i, one in enumerate(asked):
        engines.submit(engine, ours, str(i), one)
        for _ in range(4):
            step()
        assert (
            engine.stats().running
            == sum(s.priority < BACKGROUND for s in engine.scheduler.running)
            == min(2, max(0, i - 1))
        )
    while engine.busy:
        step()
    assert [answers[str(i)].tokens for i in range(len(asked))] == alone
    assert ended[:3] == ["3", "4", "2"], "each took the place of the least urgent"
    assert engine.stats().preemptions == 3
    assert engine.stats().blocks_used == 0
