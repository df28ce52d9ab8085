"""What is said of a prompt's own tokens is what transformers computes, however the prompt is batched, chunked, cached
or preempted, and it changes no answer beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opsin_plugins.spec import SpecError
from opsin_server.engine.running import prompt_logprobs
from opsin_server.ipc.messages import AdapterRef, Pooling
from support import adapters, engines, oracle, tiny
from support.engines import Asked
from support.inputs import their_inputs

IMAGE = tiny.IMAGE_TOKEN
TEXT = [Asked([5, 6, 7, 8, 9]), Asked(list(range(3, 60))), Asked([4])]
PICTURES = [
    Asked([5, 6, IMAGE, 7, 8, 9], [oracle.picture(0, 40, 30)]),
    Asked([9, IMAGE, 8, IMAGE, 7, 6], [oracle.picture(1, 25, 60), oracle.picture(2, 33, 33)]),
    *TEXT,
]
TOP = 3
CASES = [("mistral", TEXT, False), ("qwen2_vl", PICTURES, False), ("qwen2_vl", PICTURES, True)]


@pytest.fixture(scope="module", params=CASES, ids=["text", "pictures", "pictures-ahead"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, asked, ahead = request.param
    theirs = tiny.FAMILIES[name].make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "RUN_AHEAD", ahead)
        patch.setattr(prompt_logprobs, "SCORED_ROWS", 5)
        yield theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model")), asked


def scores(answer: engines.Answer, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and real ones, [1 + TOP, prompt - 1]."""
    first, parts = 1, []
    for part in answer.prompt:
        assert (part.first, part.top) == (first, TOP)
        both = [
            np.frombuffer(data, kind).reshape(1 + TOP, -1) for data, kind in ((part.whole, "<i4"), (part.real, "<f4"))
        ]
        parts.append(both)
        first += both[0].shape[1]
    assert first == prompt
    if not parts:
        return np.zeros((1 + TOP, 0), np.int32), np.zeros((1 + TOP, 0), np.float32)
    whole, real = (np.concatenate(many, 1) for many in zip(*parts, strict=True))
    return whole, real


def check(theirs, ours, asked: Asked, answer: engines.Answer) -> None:
    """Ranks and ids only where they are not nearly even."""
    made = oracle.prompt(ours, asked.ids, asked.images)
    ids = torch.from_numpy(made.expanded.ids).long()
    whole, real = (torch.from_numpy(x.copy()) for x in scores(answer, len(ids)))
    logged = theirs(**their_inputs(ours.spec, made)).logits[0, :-1].float().log_softmax(-1)
    mine = logged.gather(1, ids[1:, None]).squeeze(1)
    torch.testing.assert_close(real[0], mine, atol=1e-4, rtol=0)
    torch.testing.assert_close(real[1:].T, logged.topk(TOP, -1).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(logged.gather(1, whole[1:].T.long()), real[1:].T, atol=1e-4, rtol=0)
    below, above = ((logged > mine[:, None] + margin).sum(1) + 1 for margin in (1e-4, -1e-4))
    assert bool(((below <= whole[0]) & (whole[0] <= above)).all())


def wanting(asked: list[Asked]) -> list[Asked]:
    return [replace(one, prompt_logprobs=TOP) for one in asked]


def test_they_are_those_of_transformers_in_chunks_and_beside_others(case) -> None:
    theirs, ours, asked = case
    alone = [a.tokens for a in engines.ask(engines.make_engine(ours), ours, asked)]
    engine = engines.make_engine(ours, max_batch_tokens=16, blocks=24, encoder_blocks=64)
    for i, one in enumerate(asked):
        engines.submit(engine, ours, f"pool{i}", one, pooling=Pooling("mean"))
        engines.submit(engine, ours, f"chat{i}", one)
        engines.submit(engine, ours, f"mine{i}", replace(one, prompt_logprobs=TOP))
    answers = engines.run(engine)
    for i, one in enumerate(asked):
        assert answers[f"chat{i}"].tokens == answers[f"mine{i}"].tokens == alone[i]
        check(theirs, ours, one, answers[f"mine{i}"])
        assert not answers[f"chat{i}"].prompt
    assert engine.stats().blocks_used == 0


def test_a_prefix_that_is_cached_is_computed_all_the_same(case) -> None:
    theirs, ours, asked = case
    engine = engines.make_engine(ours)
    engines.ask(engine, ours, asked)
    for one, answer in zip(asked, engines.ask(engine, ours, wanting(asked)), strict=True):
        check(theirs, ours, one, answer)
        assert answer.cached == 0


def test_one_that_is_preempted_says_nothing_twice(case) -> None:
    theirs, ours, asked = case
    long = max(asked, key=lambda one: len(one.ids))
    engine = engines.make_engine(ours, max_batch_tokens=16)
    engine.run_ahead = False  # (one that a launched step works on is never preempted)
    engines.submit(engine, ours, "a", replace(long, prompt_logprobs=TOP))
    answers: dict[str, engines.Answer] = {}
    for _ in range(2):
        engines.collect(engine.step(), answers)
    (victim,) = engine.scheduler.running
    assert 0 < victim.computed < victim.length
    engine.scheduler._preempt(victim)
    said = answers["a"].prompt
    answer = engines.run(engine)["a"]
    answer.prompt = said + answer.prompt
    check(theirs, ours, long, answer)


def test_an_answer_of_no_tokens_ends_with_its_prompt(case) -> None:
    theirs, ours, asked = case
    for one, answer in zip(
        asked,
        engines.ask(engines.make_engine(ours), ours, [replace(one, count=0) for one in wanting(asked)]),
        strict=True,
    ):
        assert (answer.tokens, answer.finish, answer.error) == ([], "length", None)
        check(theirs, ours, one, answer)


@pytest.mark.parametrize("how", [{"prompt_logprobs": 21}, {"prompt_logprobs": -2}, {"count": -1}], ids=str)
def test_what_is_out_of_range_is_refused(case, how: dict[str, int]) -> None:
    _, ours, asked = case
    with pytest.raises(SpecError, match=r"out of range"):
        engines.submit(engines.make_engine(ours), ours, "a", replace(asked[0], **how))
    with pytest.raises(SpecError, match="no token has a probability"):
        engines.submit(engines.make_engine(ours), ours, "a", wanting(asked)[0], pooling=Pooling())


def test_an_adapters_are_those_of_merged_weights(tmp_path: Path) -> None:
    directory = tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path / "model")
    ours, other = (oracle.load(directory) for _ in range(2))
    adapter = adapters.random(ours, 4, 0)
    ref: AdapterRef = adapters.write(tmp_path / "adapter.safetensors", adapter)
    adapters.merge(other, adapter)
    engine = engines.make_engine(ours, adapter_slots=1, max_batch_tokens=16)
    for i, one in enumerate(wanting(PICTURES)):
        engines.submit(engine, ours, f"{i}", one, adapter=ref)
        engines.submit(engine, ours, f"base{i}", one)
    answers: dict[str, engines.Answer] = {}
    while engine.sequences:
        if engine.busy:
            engines.collect(engine.step(), answers)
    engine.close()
    merged = engines.ask(engines.make_engine(other), other, wanting(PICTURES))
    for i, one in enumerate(PICTURES):
        length = len(oracle.prompt(ours, one.ids, one.images).expanded.ids)
        mine, theirs, base = (scores(a, length)[1] for a in (answers[f"{i}"], merged[i], answers[f"base{i}"]))
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        assert length == 1 or not np.allclose(mine, base, atol=1e-3)
