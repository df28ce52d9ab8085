"""Several answers to one prompt: each is what its seed alone would give, and the prompt is computed once."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from opsin_plugins.spec import SpecError
from opsin_server.ipc.messages import Sampling, Submit, arrays_of, describe
from support import engines, guided, oracle, tiny
from support.engines import Answer, Asked
from support.oracle import Ours, prompt

IMAGE = tiny.IMAGE_TOKEN
PICTURE = oracle.picture(0, 60, 60)
LONG = Asked([5, 6, IMAGE, *range(7, 40)], [PICTURE], 12, Sampling(temperature=1.0, seed=11))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return oracle.load(tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path_factory.mktemp("model")))


def submit(engine, ours: Ours, asked: Asked, choices: int, grammar: str | None = None) -> int:
    """The prompt's length."""
    made = prompt(ours, asked.ids, asked.images)
    message = Submit(
        "r", asked.sampling, asked.count, (), made.delta, len(made.positions), made.expanded.spans,
        describe(made.items), choices=choices, guided=grammar,
    )  # fmt: skip
    engine.submit(message, arrays_of(made.expanded.ids, made.positions, made.items))
    return len(made.expanded.ids)


def seeded(ours: Ours, number: int) -> Answer:
    asked = Asked(LONG.ids, LONG.images, LONG.count, replace(LONG.sampling, seed=11 + number))
    return engines.ask(engines.make_engine(ours), ours, [asked])[0]


def test_each_choice_is_what_its_own_seed_gives(ours: Ours) -> None:
    engine = engines.make_engine(ours)
    length = submit(engine, ours, LONG, 3)
    answers = engines.run(engine, patient=True)
    assert answers.keys() == {"r", "r#1", "r#2"}
    for number, name in enumerate(("r", "r#1", "r#2")):
        assert answers[name].tokens == seeded(ours, number).tokens
    assert len({tuple(answer.tokens) for answer in answers.values()}) == 3
    shared = length // engine.scheduler.blocks.block_size * engine.scheduler.blocks.block_size
    assert answers["r"].cached == 0
    assert answers["r#1"].cached == answers["r#2"].cached == shared
    assert engine.stats().encoder_queries <= 1, "its picture is encoded once, and not looked for again"


def test_without_a_prefix_cache_each_computes_its_own(ours: Ours) -> None:
    engine = engines.make_engine(ours, prefix_cache=False)
    submit(engine, ours, LONG, 2)
    answers = engines.run(engine, patient=True)
    assert answers["r#1"].tokens == seeded(ours, 1).tokens


@pytest.mark.parametrize("when", ["at once", "in prefill", "later"])
def test_the_others_go_on_without_the_first(ours: Ours, when: str) -> None:
    engine = engines.make_engine(ours, max_batch_tokens=16)
    submit(engine, ours, LONG, 3)
    steps = {"at once": 0, "in prefill": 1, "later": 6}[when]
    answers: dict[str, Answer] = {}
    for _ in range(steps):
        engines.collect(engine.step(), answers)
    engine.cancel("r")
    engine.cancel("r#2")
    while engine.busy:
        engines.collect(engine.step(), answers)
    assert answers["r#1"].tokens == seeded(ours, 1).tokens
    assert answers["r#1"].finish == "length"
    assert not engine.sequences
    assert engine.scheduler.blocks.used == 0
    assert engine.stats().waiting == 0


def test_who_leaves_takes_all(ours: Ours) -> None:
    engine = engines.make_engine(ours)
    submit(engine, ours, LONG, 3)
    for name in ("r", "r#1", "r#2"):
        engine.cancel(name)
    assert not engine.busy
    assert engine.step() == []
    assert engine.stats().waiting == 0


def test_each_choice_keeps_to_the_grammar(ours: Ours) -> None:
    engine = engines.make_engine(ours)
    words = guided.Vocabulary(ours.spec.decoder.vocab)
    words.teach(engine)
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2}
    submit(engine, ours, Asked(LONG.ids, LONG.images, 200, LONG.sampling), 4, guided.grammar(schema))
    answers = engines.run(engine, patient=True)
    assert len(answers) == 4
    for answer in answers.values():
        guided.check(words.text(answer.tokens), schema)
    engine.close()


def test_no_more_than_there_may_be(ours: Ours) -> None:
    engine = engines.make_engine(ours)
    for choices in (0, 17):
        with pytest.raises(SpecError, match="choices"):
            submit(engine, ours, LONG, choices)
    assert not engine.sequences
