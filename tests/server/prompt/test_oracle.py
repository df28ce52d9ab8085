"""Prompt ids against transformers, on generated conversations."""

import json
import random
import re

import pytest
from tokenizers import Tokenizer as Backend

SIZES = {"mini": 500, "byte-level": 500, "metaspace": 500, "legacy": 200, "unigram": 200}


@pytest.mark.parametrize("name", SIZES)
def test_ids_are_those_of_apply_chat_template(name, cases, encoders, tools):
    rng, oracle = random.Random(7), cases[name].oracle
    for _ in range(SIZES[name]):
        messages = tools.some_conversation(rng)
        dicts = tools.as_dicts(messages)
        expected = oracle.apply_chat_template(dicts, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encoders[name].text_ids(messages) == expected


class PlainRule:
    """The rule of DESIGN 3.10 in its own words: split the rendered text at the strings, encode them apart."""

    def __init__(self, case) -> None:
        document = json.loads((case.directory / "tokenizer.json").read_text())
        strings = [token["content"] for token in document["added_tokens"] if token["content"].strip()]
        self.pattern = re.compile("|".join(re.escape(text) for text in sorted(strings, key=len, reverse=True)))
        self.plain = Backend.from_str(json.dumps(document | {"added_tokens": [], "post_processor": None}))
        self.oracle, self.extra = case.oracle, case.extra

    def ids(self, dicts_of) -> list[int]:
        """dicts_of: the conversation with every text changed by a function."""
        typed: list[str] = []
        dicts = dicts_of(lambda text: self.pattern.sub(lambda found: typed.append(found[0]) or "\uf8ff", text))
        first, *rest = self.rendered(dicts).split("\uf8ff")
        ids = self.usual(first)
        for string, text in zip(typed, rest, strict=True):
            ids += self.inside(lambda t: self.plain.encode(t).ids, string) + self.inside(self.usual, text)
        return ids

    def inside(self, encode, text) -> list[int]:
        return encode(self.extra + text)[len(encode(self.extra)) :] if text else []

    def usual(self, text) -> list[int]:
        return self.oracle(text, add_special_tokens=False)["input_ids"]

    def rendered(self, dicts) -> str:
        return self.oracle.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["mini", "byte-level", "metaspace"])
def test_special_tokens_in_text_are_plain_text(name, cases, encoders, tools):
    rng, rule, found = random.Random(11), PlainRule(cases[name]), 0
    for _ in range(200):
        messages = tools.some_conversation(rng, encoders[name].tokenizer.added)
        ids = encoders[name].text_ids(messages)
        assert ids == rule.ids(lambda hide, messages=messages: tools.as_dicts(messages, hide))
        found += ids != rule.usual(rule.rendered(tools.as_dicts(messages)))
    assert found > 100  # the strings were there, and without the rule they would have been tokens


def test_bos_is_put_in_front_as_the_processor_of_transformers_does(with_bos, tools):
    """Its processors encode with special tokens, unless the template has written BOS."""
    oracle, messages = with_bos.oracle, [tools.say("user", "What is this?")]
    rendered = oracle.apply_chat_template(tools.as_dicts(messages), tokenize=False, add_generation_prompt=True)
    assert with_bos.encoder.text_ids(messages) == oracle(rendered)["input_ids"]
    assert with_bos.encoder.text_ids(messages)[0] == 1
    writes = with_bos.with_template("{{ bos_token }}" + with_bos.files.chat_template)
    assert writes.encoder.text_ids(messages).count(1) == 1
