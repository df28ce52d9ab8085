"""A request that is pooled gives the states that transformers has, however it is batched, chunked, cached or preempted,
and changes no answer beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opsin_plugins.spec import SpecError
from opsin_server.engine.running import runner
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
KINDS = [Pooling("last"), Pooling("mean"), Pooling("cls"), Pooling("mean", normalized=False)]
CASES = [("mistral", TEXT, False), ("qwen2_vl", PICTURES, False), ("qwen2_vl", PICTURES, True)]


@pytest.fixture(scope="module", params=CASES, ids=["text", "pictures", "pictures-ahead"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, asked, ahead = request.param
    theirs = tiny.FAMILIES[name].make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "RUN_AHEAD", ahead)
        yield theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model")), asked


def numbers(answer: engines.Answer) -> torch.Tensor:
    assert (answer.finish, answer.error, answer.tokens) == ("length", None, [])
    return torch.from_numpy(np.frombuffer(answer.embedding, "<f4").copy())


def expected(theirs, ours, asked: Asked, how: Pooling) -> torch.Tensor:
    inputs = their_inputs(ours.spec, oracle.prompt(ours, asked.ids, asked.images))
    states = theirs(**inputs, output_hidden_states=True).hidden_states[-1][0]
    vector = {"last": states[-1], "cls": states[0], "mean": states.mean(0)}[how.kind]
    return F.normalize(vector, dim=0) if how.normalized else vector


def embed(engine, ours, asked: list[Asked], how: Pooling, name: str = "e") -> list[torch.Tensor]:
    for i, one in enumerate(asked):
        engines.submit(engine, ours, f"{name}{i}", one, pooling=how)
    answers = engines.run(engine)
    return [numbers(answers[f"{name}{i}"]) for i in range(len(asked))]


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_pooled_states_are_those_of_transformers(case, how: Pooling) -> None:
    theirs, ours, asked = case
    engine = engines.make_engine(ours, max_batch_tokens=20)
    for one, vector in zip(asked, embed(engine, ours, asked, how), strict=True):
        torch.testing.assert_close(vector, expected(theirs, ours, one, how), atol=1e-4, rtol=0)


def test_company_changes_nothing(case) -> None:
    """Chats and all kinds of pooling in the same steps, in chunks, with too few blocks for all of them."""
    _, ours, asked = case
    alone = [a.tokens for a in engines.ask(engines.make_engine(ours), ours, asked)]
    single = [[embed(engines.make_engine(ours), ours, [one], how)[0] for one in asked] for how in KINDS]
    engine = engines.make_engine(ours, max_batch_tokens=16, blocks=24, encoder_blocks=64)
    for i, one in enumerate(asked):
        engines.submit(engine, ours, f"chat{i}", one)
        for k, how in enumerate(KINDS):
            engines.submit(engine, ours, f"{k}{i}", one, pooling=how)
    answers = engines.run(engine)
    assert [answers[f"chat{i}"].tokens for i in range(len(asked))] == alone
    for k in range(len(KINDS)):
        for i, vector in enumerate(single[k]):
            torch.testing.assert_close(numbers(answers[f"{k}{i}"]), vector, atol=1e-5, rtol=0)
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_one_that_is_preempted_begins_anew(case, how: Pooling) -> None:
    _, ours, asked = case
    long = max(asked, key=lambda one: len(one.ids))
    engine = engines.make_engine(ours, max_batch_tokens=16, prefix_cache=False)
    engine.run_ahead = False  # (one that a launched step works on is never preempted)
    engines.submit(engine, ours, "e", long, pooling=how)
    engine.step()
    engine.step()
    (victim,) = engine.scheduler.running
    assert 0 < victim.computed < victim.length
    engine.scheduler._preempt(victim)
    (alone,) = embed(engines.make_engine(ours), ours, [long], how)
    torch.testing.assert_close(numbers(engines.run(engine)["e"]), alone, atol=1e-5, rtol=0)


def test_prefixes_are_used_where_they_change_nothing(case) -> None:
    _, ours, asked = case
    engine = engines.make_engine(ours)
    for how in KINDS:
        first = embed(engine, ours, asked, how, "first")
        hits = engine.stats().prefix_hits
        again = embed(engine, ours, asked, how, "again")
        assert (engine.stats().prefix_hits > hits) is (how.kind == "last")
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_an_embedding_that_is_no_numbers_ends_its_own_request(case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours, asked = case
    alone = embed(engines.make_engine(ours), ours, asked, Pooling("mean"))
    pool = runner.pooled_states

    def odd(states, rows, norm):
        for chunk, mine in rows.pooled:
            if chunk.sequence.request_id == "e1":
                states[mine] = torch.nan
        return pool(states, rows, norm)

    monkeypatch.setattr(runner, "pooled_states", odd)
    engine = engines.make_engine(ours)
    for i, one in enumerate(asked):
        engines.submit(engine, ours, f"e{i}", one, pooling=Pooling("mean"))
    answers = engines.run(engine)
    bad = answers.pop("e1")
    assert (bad.finish, bad.error) == ("error", "the model's embedding for this request is no numbers")
    for name, answer in answers.items():
        torch.testing.assert_close(numbers(answer), alone[int(name[1:])], atol=1e-5, rtol=0)


def test_what_is_no_request_to_pool_is_refused(case) -> None:
    _, ours, _ = case
    engine = engines.make_engine(ours, max_context=8)
    engines.submit(engine, ours, "full", Asked(list(range(3, 11))), pooling=Pooling())
    with pytest.raises(SpecError, match="9 prompt tokens; this engine takes 1 to 8"):
        engines.submit(engine, ours, "long", Asked(list(range(3, 12))), pooling=Pooling())
    assert len(numbers(engines.run(engine)["full"])) == ours.spec.decoder.width


def test_an_adapter_embeds_as_merged_weights_do(tmp_path: Path) -> None:
    directory = tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path / "model")
    ours, other = (oracle.load(directory) for _ in range(2))
    adapter = adapters.random(ours, 4, 0)
    ref: AdapterRef = adapters.write(tmp_path / "adapter.safetensors", adapter)
    adapters.merge(other, adapter)
    engine = engines.make_engine(ours, adapter_slots=1, max_batch_tokens=16)
    for i, one in enumerate(PICTURES):
        engines.submit(engine, ours, f"base{i}", one, pooling=Pooling("mean"))
        engines.submit(engine, ours, f"mine{i}", one, adapter=ref, pooling=Pooling("mean"))
        engines.submit(engine, ours, f"chat{i}", one, adapter=ref)
    answers: dict[str, engines.Answer] = {}
    while engine.sequences:
        if engine.busy:
            engines.collect(engine.step(), answers)
    engine.close()
    merged = embed(engines.make_engine(other), other, PICTURES, Pooling("mean"))
    base = embed(engines.make_engine(ours), ours, PICTURES, Pooling("mean"))
    said = engines.ask(engines.make_engine(other), other, PICTURES)
    for i in range(len(PICTURES)):
        torch.testing.assert_close(numbers(answers[f"mine{i}"]), merged[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(numbers(answers[f"base{i}"]), base[i], atol=1e-5, rtol=0)
        assert answers[f"chat{i}"].tokens == said[i].tokens
        assert not torch.allclose(merged[i], base[i], atol=1e-3)
