"""Penalties and logit bias: transformers' and the OpenAI API's definitions, in any company."""

from __future__ import annotations

import math

import pytest
from transformers import LogitsProcessor, LogitsProcessorList

from opsin_server.ipc.messages import Sampling
from support import engines, oracle, tiny
from support.engines import Asked

COUNT = 24
PROMPTS = [[5, 6, 7, 8, 9], [11, 3, 4], [20, 21, 22, 23, 24, 25, 26]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    theirs = tiny.FAMILIES["qwen2_vl"].make()
    return theirs, oracle.saved(theirs, tmp_path_factory.mktemp("qwen2_vl"))


def ask(pair, *rules: Sampling, count: int = COUNT, **options: int) -> list[engines.Answer]:
    _, ours = pair
    asked = [Asked(ids, (), count, rule) for ids, rule in zip(PROMPTS, rules, strict=False)]
    return engines.ask(engines.make_engine(ours, **options), ours, asked)


def theirs(pair, ids: list[int], **options: object) -> list[int]:
    model, ours = pair
    made = oracle.prompt(ours, ids, ())
    out = model.generate(
        **oracle.their_inputs(ours.spec, made), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False,
        eos_token_id=None, **options,
    )  # fmt: skip
    return out[0, len(made.ids) :].tolist()


class OpenAIPenalties(LogitsProcessor):
    """As https://platform.openai.com/docs/guides/text-generation says it, one token after the other."""

    def __init__(self, prompt: int, frequency: float, presence: float, bias: dict[int, float]) -> None:
        self.prompt, self.frequency, self.presence, self.bias = prompt, frequency, presence, bias

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        answer = input_ids[0, self.prompt :].tolist()
        for token in set(answer):
            scores[0, token] -= answer.count(token) * self.frequency + self.presence
        for token, value in self.bias.items():
            scores[0, token] += value
        return scores


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_repetition_penalty_is_that_of_transformers(pair, penalty: float) -> None:
    rule = Sampling(temperature=0.0, repetition_penalty=penalty)
    for ids, answer in zip(PROMPTS, ask(pair, rule, rule, rule), strict=True):
        assert answer.tokens == theirs(pair, ids, repetition_penalty=penalty)


@pytest.mark.parametrize("frequency", [0.0, 0.02, -0.02])
@pytest.mark.parametrize("presence", [0.0, 0.05])
def test_frequency_presence_and_bias_are_those_of_the_api(pair, frequency: float, presence: float) -> None:
    bias = {7: 0.1, 9: -0.1}
    rule = Sampling(
        temperature=0.0, frequency_penalty=frequency, presence_penalty=presence, logit_bias=tuple(bias.items())
    )
    for ids, answer in zip(PROMPTS, ask(pair, rule, rule, rule), strict=True):
        processor = LogitsProcessorList([OpenAIPenalties(len(ids), frequency, presence, bias)])
        assert answer.tokens == theirs(pair, ids, logits_processor=processor)


def test_the_rules_of_one_request_are_its_own_and_survive_preemption(pair) -> None:
    rules = [
        Sampling(temperature=0.0, frequency_penalty=2.0),
        Sampling(temperature=0.0),
        Sampling(1.3, seed=5, repetition_penalty=1.5, logit_bias=((3, 2.0),)),
    ]
    together = ask(pair, *rules)
    tight = ask(pair, *rules, blocks=12, max_context=44)
    assert [a.tokens for a in together] == [a.tokens for a in tight]
    assert together[1].tokens == theirs(pair, PROMPTS[1])
    assert max(together[0].tokens.count(t) for t in together[0].tokens) < max(
        theirs(pair, PROMPTS[0]).count(t) for t in theirs(pair, PROMPTS[0])
    )


def test_a_bias_forces_and_forbids(pair) -> None:
    forced, free = ask(pair, Sampling(1.0, seed=1, logit_bias=((42, 100.0),)), Sampling(temperature=0.0))
    assert set(forced.tokens) == {42}
    banned = set(free.tokens)
    _, without = ask(pair, Sampling(), Sampling(temperature=0.0, logit_bias=tuple((t, -100.0) for t in banned)))
    assert not banned & set(without.tokens)


def test_logprobs_stay_the_models_own(pair) -> None:
    plain, biased = (
        ask(pair, Sampling(temperature=0.0, top_logprobs=3, logit_bias=bias), count=1)[0].logprobs[0]
        for bias in ((), ((42, 100.0),))
    )
    assert plain.values == biased.values
    assert biased.chosen < plain.chosen
    assert math.isfinite(biased.chosen)
