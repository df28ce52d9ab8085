"""The engine changes no token, however it batches, chunks, caches or preempts; and a bad request harms nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opsin_plugins.spec import Span, SpecError, VisibleImages
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.ipc.messages import Sampling, Submit, arrays_of, describe
from support import engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
MIX = [
    Asked([5, 6, IMAGE, 7, 8, 9], [oracle.picture(0, 40, 30)]),
    Asked([4, 3, 11, 12, 13]),
    Asked([9, IMAGE, 8, IMAGE, 7, 6], [oracle.picture(1, 25, 60), oracle.picture(2, 33, 33)], count=30),
    Asked([IMAGE, 14], [oracle.picture(3, 90, 20)], count=9),
    Asked(list(range(3, 60)), count=20),
    Asked([5, 6, IMAGE, 7, 8, 10], [oracle.picture(0, 40, 30)]),
]


FAMILIES = [name for name, family in tiny.FAMILIES.items() if family.preprocessor or name == "qwen"]


# One with images in its prompts, one with cross-attention, one with rotary frequencies of its own.
AHEAD = ["qwen2_vl", "mllama", "qwen"]
ORDERS = [(name, False) for name in FAMILIES] + [(name, True) for name in AHEAD]


@pytest.fixture(
    scope="module",
    params=ORDERS,
    ids=[name + "-ahead" * ahead for name, ahead in ORDERS],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """ahead: a step is launched before the results of the one before it are looked at, as on a GPU."""
    name, ahead = request.param
    theirs = tiny.FAMILIES[name].make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "RUN_AHEAD", ahead)
        yield theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model"))


def test_steps_run_ahead_where_they_should(pair) -> None:
    _, ours = pair
    engine = engines.make_engine(ours)
    engines.ask(engine, ours, MIX)
    stats = engine.stats()
    assert (stats.steps_ahead > stats.steps / 2) is engines.RUN_AHEAD
    engines.ask(engine, ours, [Asked(a.ids, a.images, a.count, Sampling(0.0, top_logprobs=2)) for a in MIX])
    assert engine.stats().steps_ahead == stats.steps_ahead, "log probabilities are waited for"


@pytest.fixture(scope="module")
def alone(pair) -> list[list[int]]:
    """What transformers generates for each of MIX, one by one."""
    theirs, ours = pair
    return [oracle.their_tokens(theirs, ours, oracle.prompt(ours, a.ids, a.images), a.count) for a in MIX]


def largest(ours: oracle.Ours) -> int:
    """Blocks of the pictures that a row of one of MIX needs at once: one, or all of a group."""
    together = 2 if ours.spec.cross is not None else 1
    sizes = [-(-i.tokens // 4) for a in MIX for i in oracle.prompt(ours, a.ids, a.images).items]
    return together * max(sizes, default=0)


def tight(ours) -> int:
    """Blocks of four for the longest request and little more."""
    lengths = [len(oracle.prompt(ours, a.ids, a.images).ids) + a.count for a in MIX]
    return -(-max(lengths) // 4) + 3


def tokens(answers: list[engines.Answer]) -> list[list[int]]:
    return [a.tokens for a in answers]


def test_one_by_one_equals_transformers(pair, alone) -> None:
    _, ours = pair
    engine = engines.make_engine(ours)
    assert [engines.ask(engine, ours, [a])[0].tokens for a in MIX] == alone


@pytest.mark.parametrize("budget", [1, 7, 64, 1000])
def test_mixed_batches_and_chunked_prefill_change_no_token(pair, alone, budget: int) -> None:
    _, ours = pair
    engine = engines.make_engine(ours, max_batch_tokens=budget, prefix_cache=False)
    answers = engines.ask(engine, ours, MIX)
    assert tokens(answers) == alone
    assert all(a.finish == "length" for a in answers)


def test_prefix_and_encoder_hits_change_no_token(pair, alone) -> None:
    _, ours = pair
    engine = engines.make_engine(ours)
    engines.ask(engine, ours, MIX)
    before = engine.stats()
    again = engines.ask(engine, ours, MIX)
    after = engine.stats()
    assert tokens(again) == alone
    assert after.prefix_hits > before.prefix_hits
    lengths = [len(oracle.prompt(ours, a.ids, a.images).ids) for a in MIX]
    assert all((a.cached > 0) is (n > 4) for a, n in zip(again, lengths, strict=True))


def test_the_same_picture_is_encoded_once(pair, alone) -> None:
    _, ours = pair
    engine = engines.make_engine(ours, prefix_cache=False)
    assert tokens(engines.ask(engine, ours, [MIX[0], MIX[5], MIX[0]])) == [alone[0], alone[5], alone[0]]
    stats = engine.stats()
    assert (stats.encoder_queries, stats.encoder_hits) == (3, 2)


@pytest.mark.parametrize("more", [0, 4])
def test_forced_preemption_changes_no_token(pair, alone, more: int) -> None:
    """A pool that holds the longest request and little more, and room for the largest picture, or for `more` blocks
    beside it."""
    _, ours = pair
    held = largest(ours) + more
    engine = engines.make_engine(ours, blocks=tight(ours), block_size=4, encoder_blocks=held)
    assert tokens(engines.ask(engine, ours, MIX)) == alone
    assert engine.stats().preemptions > 0
    assert engine.stats().blocks_used == 0


def test_logits_in_company_stay_within_1e_5(pair) -> None:
    _, ours = pair
    watched = [Asked(a.ids, a.images, a.count, Sampling(temperature=0.0, top_logprobs=5)) for a in MIX]
    company = engines.ask(engines.make_engine(ours), ours, watched)
    for asked, together in zip(watched, company, strict=True):
        (single,) = engines.ask(engines.make_engine(ours), ours, [asked])
        assert len(single.logprobs) == asked.count
        for a, b in zip(single.logprobs, together.logprobs, strict=True):
            assert abs(a.chosen - b.chosen) < 1e-4
            assert a.ids == b.ids
            assert a.chosen == a.values[0]


def test_one_stream_is_bit_equal_from_run_to_run(pair) -> None:
    _, ours = pair
    asked = Asked(MIX[2].ids, MIX[2].images, 30, Sampling(temperature=0.0, top_logprobs=3))
    first, second = (engines.ask(engines.make_engine(ours), ours, [asked])[0].logprobs for _ in range(2))
    assert first == second


def test_seeded_draws_repeat_in_any_company_and_after_preemption(pair) -> None:
    _, ours = pair
    warm = [Asked(a.ids, a.images, a.count, Sampling(1.5, 0.95, 40, 0.01, seed=7 + i)) for i, a in enumerate(MIX)]
    single = [engines.ask(engines.make_engine(ours), ours, [a])[0].tokens for a in warm]
    assert tokens(engines.ask(engines.make_engine(ours), ours, warm)) == single
    small = engines.make_engine(ours, blocks=tight(ours))
    assert tokens(engines.ask(small, ours, warm)) == single
    assert small.stats().preemptions > 0
    other = Asked(warm[4].ids, (), warm[4].count, Sampling(1.5, 0.95, 40, 0.01, seed=99))
    assert engines.ask(engines.make_engine(ours), ours, [other])[0].tokens != single[4]


def test_an_eos_id_ends_the_answer_and_is_not_part_of_it(pair, alone) -> None:
    _, ours = pair
    end = alone[0][5]
    (answer,) = engines.ask(engines.make_engine(ours), ours, [MIX[0]], eos=(end,))
    assert answer.finish == "stop"
    assert answer.tokens == alone[0][: alone[0].index(end)]
    watched = replace(MIX[0], sampling=Sampling(0.0, top_logprobs=0))
    engines.submit(engine := engines.make_engine(ours), ours, "a", watched, (end,))
    outputs = []
    while engine.busy:
        outputs += engine.step()
    assert (outputs[-1].ids, outputs[-1].end, len(outputs[-1].logprobs)) == ((), end, 1)


def test_cancel_frees_everything_at_any_step(pair) -> None:
    _, ours = pair
    for steps in range(12):
        engine = engines.make_engine(ours, max_batch_tokens=5)
        for i, asked in enumerate(MIX):
            engines.submit(engine, ours, str(i), asked)
        for _ in range(steps):
            engine.step()
        for i in range(len(MIX)):
            engine.cancel(str(i))
        assert engine.step() == []  # (what was launched is waited for, and gives nothing)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        assert engine.scheduler.encoder.pinned == 0
        assert engine.step() == []


@pytest.mark.parametrize("stage", ["encode", "run", "draw"])
def test_a_failing_step_ends_its_own_requests_only(pair, alone, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair
    engine = engines.make_engine(ours, max_sequences=1, max_batch_tokens=1000)

    def explode(*args: object) -> None:
        raise RuntimeError("as a kernel would")

    with monkeypatch.context() as patch:
        if stage == "draw":
            patch.setattr("opsin_server.engine.engine.draw", explode)
        else:
            patch.setattr(engine.runner, stage, explode)
        engines.submit(engine, ours, "bad", MIX[0])
        engines.submit(engine, ours, "next", MIX[5])
        answers: dict[str, engines.Answer] = {}
        engines.collect(engine.step(), answers)
    assert answers["bad"].finish == "error"
    assert "kernel" not in (answers["bad"].error or ""), "what went wrong inside stays inside"
    assert engines.run(engine)["next"].tokens == alone[5]
    assert engine.stats().blocks_used == 0


def bad(engine, ours, **changes: object) -> None:
    made = oracle.prompt(ours, MIX[0].ids, MIX[0].images)
    items = [replace(item, digest=b"d") for item in made.items]
    fields = {
        "request_id": "x",
        "sampling": engines.GREEDY,
        "max_tokens": 3,
        "eos": (),
        "delta": made.delta,
        "axes": len(made.positions),
        "spans": made.expanded.spans,
        "items": describe(items),
        "visible": visible_images(made.expanded.visible),
    }
    ids = changes.pop("ids", made.expanded.ids)
    fields.update(changes)
    engine.submit(Submit(**fields), arrays_of(ids, made.positions, items))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": torch.tensor([tiny.VOCAB], dtype=torch.int32).numpy()}, "not below the number of embeddings"),
        ({"ids": torch.tensor([-1], dtype=torch.int32).numpy()}, "not below the number of embeddings"),
        ({"ids": torch.zeros(0, dtype=torch.int32).numpy()}, "0 prompt tokens"),
        ({"ids": torch.zeros(999, dtype=torch.int32).numpy()}, "999 prompt tokens"),
        ({"axes": 2}, "2 position axes"),
        ({"spans": (Span(0, 5000, 0),)}, "does not fit a prompt"),
        ({"spans": (Span(2, 1, 0),)}, "1 placeholders for"),
        ({"spans": (Span(2, 1, 4),)}, "does not fit a prompt"),
        ({"spans": (Span(2, 1, 0, bidirectional=True),)}, "bidirectional"),
        ({"adapter": "a"}, "adapters"),
        ({"spans": (Span(2, 2, 0, (True,)),)}, "1 marks for an image span of 2"),
        ({"visible": (VisibleImages(0, 0, 9),)}, "no cross-attention|rows from 0 on see 0 to 9"),
        ({"max_tokens": -1}, "max_tokens -1 or delta"),
        ({"delta": 2**40}, "is out of range"),
        ({"sampling": Sampling(logit_bias=((-(10**9), 1.0),))}, "a token of logit_bias is not below"),
        ({"sampling": Sampling(logit_bias=((10**9, 1.0),))}, "a token of logit_bias is not below"),
        ({"sampling": Sampling(logit_bias=((1, float("nan")),))}, "is not finite"),
        ({"sampling": Sampling(top_p=float("nan"))}, "is not finite"),
        ({"sampling": Sampling(temperature=float("inf"))}, "is not finite"),
        ({"sampling": Sampling(top_logprobs=10**6)}, "top_logprobs 1000000"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "repetition_penalty 0.0"),
        ({"sampling": Sampling(min_p=2.0)}, "is no way to draw"),
        ({"sampling": Sampling(top_k=-1)}, "is no way to draw"),
    ],
)
def test_what_must_not_reach_the_model_is_refused(pair, change: dict[str, object], said: str) -> None:
    _, ours = pair
    if said == "1 placeholders for" and ours.spec.cross is not None:
        return  # its images stand outside of the prompt
    engine = engines.make_engine(ours)
    with pytest.raises(SpecError, match=said):
        bad(engine, ours, **change)
    assert not engine.busy


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_language_model_keeps_nothing_of_pictures(family: str, tmp_path: Path) -> None:
    theirs = tiny.FAMILIES[family].make()
    ours = oracle.saved(theirs, tmp_path)
    engine = engines.make_engine(ours, encoder_blocks=0)
    asked = Asked([5, 6, 7, 8], count=9)
    expected = oracle.their_tokens(theirs, ours, oracle.prompt(ours, asked.ids, []), asked.count)
    assert tokens(engines.ask(engine, ours, [asked])) == [expected]
    assert engine.stats().encoder_bytes == 0


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory):
    theirs = tiny.mllama()
    return theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model"))


def test_an_image_outside_of_the_prompt_costs_its_cross_attention_layers_only(mllama) -> None:
    _, ours = mllama
    engine = engines.make_engine(ours)
    engines.ask(engine, ours, [MIX[0]])
    stats, decoder = engine.stats(), ours.spec.decoder
    rows = 4 * ours.spec.vision.positions
    assert rows == 4 * 26
    assert stats.encoder_bytes == rows * len(decoder.replaced) * 2 * decoder.kv_heads * decoder.head_dim * 4


@pytest.mark.parametrize("blocks", [26 * 2, 26 * 3])
def test_images_that_must_leave_come_back_and_change_no_token(mllama, blocks: int) -> None:
    """A memory for two or three images (of four tiles of 26 rows, in blocks of four), and requests that hold them."""
    theirs, ours = mllama
    asked = [Asked([5, IMAGE, 7, 8, 9 + i], [oracle.picture(i, 40, 30)], count=9) for i in range(5)]
    asked.append(Asked([IMAGE, IMAGE, 7, 8], [oracle.picture(i, 40, 30) for i in (0, 3)], count=9))
    expected = [oracle.their_tokens(theirs, ours, oracle.prompt(ours, a.ids, a.images), 9) for a in asked]
    engine = engines.make_engine(ours, encoder_blocks=blocks)
    for _ in range(2):
        assert tokens(engines.ask(engine, ours, asked)) == expected
    assert engine.stats().encoder_queries > len(asked) + 1, "some were encoded more than once"
    assert engine.scheduler.encoder.pinned == 0


def test_more_images_at_once_than_the_memory_holds_are_refused(mllama) -> None:
    _, ours = mllama
    engine = engines.make_engine(ours, encoder_blocks=26)
    with pytest.raises(SpecError, match="2 images that are seen together need 52 encoder blocks; there are 26"):
        engines.ask(engine, ours, [Asked([IMAGE, IMAGE, 7], [oracle.picture(i, 40, 30) for i in range(2)])])
    (answer,) = engines.ask(engine, ours, [Asked([IMAGE, 7, IMAGE, 8], [oracle.picture(i, 40, 30) for i in range(2)])])
    assert answer.finish == "length"


@torch.no_grad()
def test_rows_before_the_first_image_see_none_unless_asked(mllama, tmp_path) -> None:
    theirs, _ = mllama
    ours = oracle.load(tiny.save(theirs, tmp_path))
    text, picture = [5, 6, 7], oracle.picture(0, 40, 30)
    (alone,) = oracle.our_logits(ours, [oracle.prompt(ours, text, [])])
    (before,) = oracle.our_logits(ours, [oracle.prompt(ours, [*text, IMAGE, 8], [picture])])
    assert (before[:3] - alone).abs().max() < 1e-5
    first = oracle.prompt(ours, [IMAGE, *text], [picture])
    assert (oracle.our_logits(ours, [first])[0] - oracle.their_logits(theirs, ours, first)).abs().max() < 1e-4
    expected = oracle.their_tokens(theirs, ours, first, 12)
    assert engines.ask(engines.make_engine(ours), ours, [Asked([IMAGE, *text], [picture], 12)])[0].tokens == expected


def test_a_known_prompt_whose_pictures_were_evicted_is_answered_again(mllama) -> None:
    """Its next row needs both, which is more than a step would encode: then a step encodes more."""
    _, ours = mllama
    two = Asked([9, IMAGE, IMAGE, *range(3, 40)], [oracle.picture(n, 40, 60) for n in (1, 2)], count=4)
    others = [Asked([7, IMAGE, IMAGE, 5], [oracle.picture(n, 40, 60) for n in (m, m + 1)], count=2) for m in (3, 5)]
    need = sum(-(-item.tokens // 4) for item in oracle.prompt(ours, two.ids, two.images).items)
    engine = engines.make_engine(ours, encoder_blocks=need, max_encode_patches=1)
    (first,) = engines.ask(engine, ours, [two])
    for other in others:
        engines.ask(engine, ours, [other])
    (again,) = engines.ask(engine, ours, [two])
    assert again.cached > 0
    assert again.tokens == first.tokens
