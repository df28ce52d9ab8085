"""Prompt ids against transformers, on generated conversations."""

import random
from functools import partial

import pytest

from support.plain_rule import PlainRule

HIDDEN = "\uf8ff"
SIZES = {"mini": 500, "byte-level": 500, "metaspace": 500, "legacy": 200, "unigram": 200}


@pytest.mark.parametrize("name", SIZES)
def test_ids_are_those_of_apply_chat_template(name, cases, encoders, tools):
    rng, oracle = random.Random(7), cases[name].oracle
    for _ in range(SIZES[name]):
        messages = tools.some_conversation(rng)
        dicts = tools.as_dicts(messages)
        expected = oracle.apply_chat_template(dicts, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encoders[name].text_ids(messages) == expected


def hide(typed, found) -> str:
    typed.append(found[0])
    return HIDDEN


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace"])
def test_special_tokens_in_text_are_plain_text(name, cases, encoders, tools):
    rng, rule, oracle, found = random.Random(11), PlainRule(cases[name]), cases[name].oracle, 0
    for _ in range(200):
        messages = tools.some_conversation(rng, encoders[name].tokenizer.added)
        typed: list[str] = []
        hidden = tools.as_dicts(messages, partial(rule.strings.sub, partial(hide, typed)))
        texts = oracle.apply_chat_template(hidden, tokenize=False, add_generation_prompt=True).split(HIDDEN)
        rendered = oracle.apply_chat_template(tools.as_dicts(messages), tokenize=False, add_generation_prompt=True)
        ids = encoders[name].text_ids(messages)
        assert ids == rule.ids(texts, typed)
        found += ids != rule.usual(rendered)
    assert found > 100  # the strings were there, and without the rule they would have been tokens


def test_bos_is_put_in_front_as_the_processor_of_transformers_does(with_bos, tools):
    """Its processors encode with special tokens, unless the template has written BOS."""
    oracle, messages = with_bos.oracle, [tools.say("user", "What is this?")]
    rendered = oracle.apply_chat_template(tools.as_dicts(messages), tokenize=False, add_generation_prompt=True)
    assert with_bos.encoder.text_ids(messages) == oracle(rendered)["input_ids"]
    assert with_bos.encoder.text_ids(messages)[0] == 1
    writes = with_bos.with_template("{{ bos_token }}" + with_bos.files.chat_template)
    assert writes.encoder.text_ids(messages).count(1) == 1
