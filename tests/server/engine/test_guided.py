"""Answers that are held to grammars: they keep to them, beside whoever, preempted or not, and harm nobody else."""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from opsin_plugins.spec import SpecError
from opsin_server.engine.engine import Engine
from opsin_server.engine.scheduling.sequence import GuideError
from opsin_server.guided.check_process import GrammarChecker
from opsin_server.guided.grammar import choice_grammar, json_grammar, regex_grammar
from opsin_server.ipc.messages import Sampling
from support import adapters, engines, guided, oracle, quantized_checks
from support.engines import Asked
from support.oracle import Ours

SIZES = quantized_checks.SIZES | {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 384}
PROMPTS = [list(range(5, 5 + length)) for length in (9, 30, 3, 17, 24, 12)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval().save_pretrained(folder)
    return oracle.load(folder)


@pytest.fixture(scope="module")
def words(ours: Ours) -> guided.Vocabulary:
    return guided.Vocabulary(ours.spec.decoder.vocab)


def engine_of(ours: Ours, words: guided.Vocabulary, **options: int) -> Engine:
    engine = engines.make_engine(ours, **options)
    words.teach(engine)
    return engine


def asked(number: int, words: str, count: int = 300) -> Asked:
    return Asked(PROMPTS[number % 6], (), count, Sampling(temperature=1.0, seed=number), words)


def schema_answers(ours: Ours, words: guided.Vocabulary, numbers: list[int], **options: int) -> list[str]:
    """Answers to schemas of these numbers, asked at once, each of which has been checked."""
    schemas = [guided.schema(number) for number in numbers]
    wanted = [asked(number, guided.grammar(schema)) for number, schema in zip(numbers, schemas, strict=True)]
    engine = engine_of(ours, words, **options)
    answers = engines.ask(engine, ours, wanted, (words.end,))
    engine.close()
    texts = [words.text(answer.tokens) for answer in answers]
    for answer, text, schema in zip(answers, texts, schemas, strict=True):
        assert answer.finish == "stop", (answer, text, schema)
        guided.check(text, schema)
    return texts


def test_an_adapter_is_read_for_whoever_waited_for_a_grammar(
    ours: Ours, words: guided.Vocabulary, tmp_path: Path
) -> None:
    """Nobody else asks for anything: when no step is due, one is to come."""
    adapter = adapters.write(tmp_path / "a.safetensors", adapters.random(ours, 4, 0))
    engine = engine_of(ours, words, adapter_slots=2)
    engines.submit(engine, ours, "it", asked(0, choice_grammar(["yes"], "x").text), (words.end,), adapter)
    answers: dict[str, engines.Answer] = {}
    while engine.sequences:
        assert engine.busy or select.select(engine.wakers, [], [], 10)[0], "it waits for nothing, for ever"
        engines.collect(engine.step(), answers)
    assert words.text(answers["it"].tokens) == "yes"
    engine.close()


def test_answers_are_valid_alone_together_and_preempted(ours: Ours, words: guided.Vocabulary) -> None:
    numbers = list(range(20))
    together = schema_answers(ours, words, numbers, max_sequences=16)
    assert len(set(together)) > 10
    for number in numbers[:6]:
        assert schema_answers(ours, words, [number]) == [together[number]]
    assert schema_answers(ours, words, numbers, blocks=80, max_sequences=16) == together


def test_adapters_keep_to_grammars_in_one_batch(ours: Ours, words: guided.Vocabulary, tmp_path: Path) -> None:
    refs = [None, *(adapters.write(tmp_path / f"{n}.st", adapters.random(ours, 4, n)) for n in range(2))]
    schemas = [guided.schema(number) for number in range(9)]

    def said(numbers: list[int]) -> list[str]:
        engine = engine_of(ours, words, adapter_slots=3, max_sequences=16)
        for number in numbers:
            wanted = asked(number, guided.grammar(schemas[number]))
            engines.submit(engine, ours, str(number), wanted, (words.end,), refs[number % 3])
        answers = engines.run(engine, patient=True)
        engine.close()
        return [words.text(answers[str(number)].tokens) for number in numbers]

    together = said(list(range(9)))
    for text, schema in zip(together, schemas, strict=True):
        guided.check(text, schema)
    assert [text for number in range(4) for text in said([number])] == together[:4]


@pytest.mark.nightly
def test_ten_thousand_schemas_leave_memory_bounded(
    ours: Ours, words: guided.Vocabulary, record_property: Callable[[str, object], None]
) -> None:
    """Checked as a server checks them, and compiled as its engine does."""
    engine, here, sizes = engine_of(ours, words), psutil.Process(), []

    async def checked(checker: GrammarChecker, number: int) -> str:
        schema = guided.schema(number) | {"title": f"number {number}"}
        return await checker.check(json_grammar(schema, "schema"))

    async def everything() -> None:
        checker = GrammarChecker()
        for number in range(10_000):
            text = await checked(checker, number)
            engines.submit(engine, ours, str(number), Asked([5, 6, 7], (), 2, guided=text), (words.end,))
            engines.run(engine, patient=True)
            if number % 1000 == 999:
                assert checker._process is not None
                sizes.append((here.memory_info().rss, psutil.Process(checker._process.pid).memory_info().rss))
        await checker.close()

    asyncio.run(everything())
    engine.close()
    grown = [(last - first) / 2**20 for first, last in zip(sizes[0], sizes[-1], strict=True)]
    record_property(
        "result", f"10,000 schemas: +{grown[0]:.0f} MiB in the server, +{grown[1]:.0f} MiB where they are checked"
    )
    assert max(grown) < 50


@pytest.mark.nightly
def test_two_hundred_schemas(ours: Ours, words: guided.Vocabulary, record_property) -> None:
    numbers = list(range(200))
    alone = [text for number in numbers for text in schema_answers(ours, words, [number])]
    assert schema_answers(ours, words, numbers, max_sequences=16, max_batch_tokens=256) == alone
    assert schema_answers(ours, words, numbers, blocks=100, max_sequences=16) == alone
    record_property("result", f"{len(alone)} schemas, at 1 and 16 streams and preempted: every answer validates")


def test_few_blocks_preempt(ours: Ours, words: guided.Vocabulary) -> None:
    engine = engine_of(ours, words, blocks=80, max_sequences=16)
    wanted = [asked(number, guided.grammar(guided.schema(number))) for number in range(20)]
    engines.ask(engine, ours, wanted, (words.end,))
    assert engine.scheduler.preemptions
    engine.close()


def test_patterns_and_choices(ours: Ours, words: guided.Vocabulary) -> None:
    pattern, choices = r"[A-F0-9]{4}(-x+)?", ["yes", "no", 'per "haps"\n', "ja/nein [0-9]"]
    wanted = [asked(n, regex_grammar(f"^{pattern}$", "x").text) for n in range(3)]
    wanted += [asked(n, choice_grammar(choices, "x").text) for n in range(5)]
    engine = engine_of(ours, words)
    texts = [words.text(answer.tokens) for answer in engines.ask(engine, ours, wanted, (words.end,))]
    assert all(re.fullmatch(pattern, text) for text in texts[:3])
    assert set(texts[3:]) <= set(choices)
    engine.close()


def test_one_that_keeps_to_no_grammar_is_answered_as_if_alone(ours: Ours, words: guided.Vocabulary) -> None:
    free = Asked(PROMPTS[1], (), 30, Sampling(temperature=1.0, seed=1, top_logprobs=2))
    engine = engine_of(ours, words)
    (alone,) = engines.ask(engine_of(ours, words), ours, [free])
    held = asked(1, guided.grammar({"type": "array", "items": {"type": "integer"}}), 30)
    held = replace(held, sampling=Sampling(temperature=1.0, seed=1, top_logprobs=2))
    beside, other = engines.ask(engine, ours, [free, held])
    assert (beside.tokens, beside.logprobs) == (alone.tokens, alone.logprobs)
    assert other.logprobs[0].ids == alone.logprobs[0].ids, "the model's own, not what the grammar leaves of them"
    engine.close()


def test_no_end_is_drawn_too_early(ours: Ours, words: guided.Vocabulary) -> None:
    """Unless nothing else may be drawn."""
    engine = engine_of(ours, words)
    ends = tuple(range(ours.spec.decoder.vocab))[10:]
    free = Asked(PROMPTS[0], (), 30, Sampling(temperature=1.0, seed=3), min_tokens=12)
    (answer,) = engines.ask(engine, ours, [free], ends)
    assert 12 <= len(answer.tokens) < 30
    assert max(answer.tokens) < 10
    held = [replace(asked(n, regex_grammar("a+", "x").text, 40), min_tokens=9) for n in range(4)]
    held += [replace(asked(0, choice_grammar(["ab"], "x").text), min_tokens=9)]
    answers = engines.ask(engine, ours, held, (words.end,))
    assert all(len(answer.tokens) >= 9 for answer in answers[:4])
    assert words.text(answers[4].tokens) == "ab"
    engine.close()


def test_a_grammar_that_fails_ends_its_own_request(
    ours: Ours, words: guided.Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not compile, one that allows nothing of this vocabulary, and one whose answer stops to follow."""
    engine = engine_of(ours, words)
    monkeypatch.setattr("opsin_server.engine.running.grammars.log.exception", lambda *given: None)
    wanted = [asked(0, "start: ("), asked(1, regex_grammar(r"\t+", "x").text), Asked(PROMPTS[2], (), 9)]
    failed, empty, free = engines.ask(engine, ours, wanted, (words.end,))
    for answer in (failed, empty):
        assert answer.finish == "error"
        assert answer.error is not None
        assert answer.error.startswith("the answer cannot be held to its grammar: ")
    assert free.finish == "length"
    engines.submit(engine, ours, "held", asked(0, regex_grammar("[a-z]{60}", "x").text), (words.end,))
    engines.submit(engine, ours, "free", Asked(PROMPTS[2], (), 9))
    (sequence,) = (one for one in engine.sequences.values() if one.request_id == "held")
    answers: dict[str, engines.Answer] = {}
    while sequence.generated < 3:
        engines.collect(engine.step() if engine.busy else [], answers)
    with pytest.raises(GuideError, match="satisfy"):
        sequence.guide.accept(words.end)  # type: ignore[union-attr]
    while engine.busy:
        engines.collect(engine.step(), answers)
    assert answers["held"].finish == "error"
    assert answers["free"].finish == "length"
    assert len(answers["free"].tokens) == 9
    assert not engine.sequences
    assert engine.scheduler.blocks.used == 0
    engine.close()


def test_who_leaves_before_the_grammar_is_compiled_leaves_nothing(ours: Ours, words: guided.Vocabulary) -> None:
    engine = engine_of(ours, words)
    for name in ("a", "b"):
        engines.submit(engine, ours, name, asked(0, guided.grammar(guided.schema(0))), (words.end,))
    engine.cancel("a")
    answers = engines.run(engine, patient=True)
    assert answers.keys() == {"b"}
    assert not engine.sequences
    assert engine.stats().waiting == 0
    engine.close()


def test_what_is_no_vocabulary_of_the_model_is_not_learned(ours: Ours, words: guided.Vocabulary) -> None:
    engine = engines.make_engine(ours)
    for tokens, special, ends in (
        (words.tokens[:-1], (), (1,)),
        (words.tokens, (), ()),
        (words.tokens, (len(words.tokens),), (1,)),
        (words.tokens, (), (-1,)),
    ):
        with pytest.raises(ValueError, match="token"):
            engine.grammars.learn(tokens, special, ends)
    with pytest.raises(SpecError, match="what its tokens say"):
        engines.submit(engine, ours, "x", asked(0, guided.grammar({})))
    engine.close()


def test_compiled_grammars_are_few(ours: Ours, words: guided.Vocabulary) -> None:
    engine = engine_of(ours, words)
    wanted = [asked(n, choice_grammar([f"choice {n}"], "x").text) for n in range(100)]
    answers = engines.ask(engine, ours, wanted, (words.end,))
    assert [words.text(answer.tokens) for answer in answers] == [f"choice {n}" for n in range(100)]
    assert len(engine.grammars._compiled) == 32
    engine.close()
