"""What goes wrong inside ends what it must, and nothing beside it."""

from __future__ import annotations

import logging

import pytest
import torch

from opsin_server.engine.engine import MAX_FAILURES, EngineBroken
from support import engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
MIX = [Asked([5, 6, IMAGE, 7, i + 3], [oracle.picture(i, 40, 30)], 6) for i in range(4)] + [Asked([4, 3, 11], count=9)]
BAD = 1


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> oracle.Ours:
    return oracle.saved(tiny.FAMILIES["qwen2_vl"].make(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(ours: oracle.Ours) -> list[list[int]]:
    return [engines.ask(engines.make_engine(ours), ours, [asked])[0].tokens for asked in MIX]


@pytest.fixture(autouse=True, params=[False, True], ids=["waits", "ahead"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "RUN_AHEAD", request.param)


def test_a_picture_that_cannot_be_encoded_ends_its_own_request(ours, alone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.make_engine(ours, max_batch_tokens=1000)
    encode = engine.runner.encode

    def broken(images) -> None:
        if any(encoding.sequence.request_id == str(BAD) for encoding in images):
            raise RuntimeError("as a kernel would")
        encode(images)

    monkeypatch.setattr(engine.runner, "encode", broken)
    answers = engines.ask(engine, ours, MIX)
    assert answers[BAD].finish == "error"
    assert [a.tokens for a in answers] == [[] if i == BAD else tokens for i, tokens in enumerate(alone)]
    assert engine.stats().blocks_used == engine.scheduler.encoder.pinned == 0


def test_pictures_that_are_too_much_together_are_encoded_alone(ours, alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("opsin.engine"), "disabled", True)  # (pytest keeps its frames)
    engine = engines.make_engine(ours, max_batch_tokens=1000)
    encode, alive = engine.runner.encode, []

    def scarce(images) -> None:
        if len(images) > 1:
            taken = torch.zeros(1000)
            alive.append(torch.UntypedStorage._weak_ref(taken.untyped_storage()))
            raise torch.OutOfMemoryError("as on a full device")
        assert all(torch.UntypedStorage._expired(storage) for storage in alive), "what had been taken is free again"
        encode(images)

    monkeypatch.setattr(engine.runner, "encode", scarce)
    assert [a.tokens for a in engines.ask(engine, ours, MIX)] == alone
    assert alive


def test_logits_that_are_no_numbers_end_their_own_request(ours, alone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.make_engine(ours)
    run, steps = engine.runner.run, iter(range(1000))

    def odd(batch):
        logits = run(batch)
        if next(steps) > 2:
            for row, chunk in enumerate(batch.sampled):
                if chunk.sequence.request_id == str(BAD):
                    logits[row, 3] = torch.nan
        return logits

    monkeypatch.setattr(engine.runner, "run", odd)
    answers = engines.ask(engine, ours, MIX)
    assert (answers[BAD].finish, answers[BAD].error) == ("error", "the model's logits for this request are no numbers")
    assert answers[BAD].tokens == alone[BAD][: len(answers[BAD].tokens)]
    assert [a.tokens for i, a in enumerate(answers) if i != BAD] == [t for i, t in enumerate(alone) if i != BAD]
    assert engine.stats().blocks_used == 0


def test_steps_that_fail_again_and_again_end_the_engine(ours, alone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.make_engine(ours, max_sequences=1)

    def explode(batch):
        raise RuntimeError("as a kernel would")

    answers: dict[str, engines.Answer] = {}
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", explode)
        for i in range(MAX_FAILURES - 1):
            engines.submit(engine, ours, f"bad {i}", MIX[i])
            engines.collect(engine.step(), answers)
    assert [a.finish for a in answers.values()] == ["error"] * (MAX_FAILURES - 1)
    assert engines.ask(engine, ours, MIX[:1])[0].tokens == alone[0], "so many may be their own requests' fault"
    monkeypatch.setattr(engine.runner, "run", explode)
    for i in range(MAX_FAILURES):
        engines.submit(engine, ours, f"worse {i}", MIX[i])
    for _ in range(MAX_FAILURES - 1):
        engine.step()
    with pytest.raises(EngineBroken, match=f"{MAX_FAILURES} steps in a row failed: RuntimeError"):
        engine.step()


def test_a_device_that_does_not_answer_ends_the_engine_at_once(ours, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.make_engine(ours)

    def explode(batch):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.runner, "run", explode)
    engines.submit(engine, ours, "one", MIX[0])
    with pytest.raises(EngineBroken):
        engine.step()


def test_two_prompts_that_do_not_fit_together_are_computed_once_each(ours) -> None:
    engine = engines.make_engine(ours, blocks=64, block_size=4, max_batch_tokens=16, prefix_cache=False)
    computed, schedule = 0, engine.scheduler.schedule

    def counted():
        nonlocal computed
        plan = schedule()
        computed += sum(chunk.length for chunk in plan.chunks)
        return plan

    engine.scheduler.schedule = counted
    long = [Asked([3 + i % 90 for i in range(150)], count=30), Asked([7 + i % 90 for i in range(150)], count=30)]
    answers = engines.ask(engine, ours, long)
    assert [len(a.tokens) for a in answers] == [30, 30]
    overrun = 2 * engines.RUN_AHEAD
    assert computed <= 2 * (150 + 29) + overrun
