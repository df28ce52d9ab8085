"""Prompts without a chat template: transformers' `tokenizer(prompt)`, but that typed special tokens are text."""

from __future__ import annotations

import random

import pytest

from opsin_server.errors import BadRequest
from opsin_server.text.raw_prompt import raw_ids

NAMES = ["mini", "byte-level", "metaspace", "legacy", "unigram"]


@pytest.mark.parametrize("name", [*NAMES, "with BOS"])
def test_a_prompt_is_as_transformers_has_it_but_for_special_tokens(name, cases, encoders, with_bos, tools):
    case = with_bos if name == "with BOS" else cases[name]
    tokenizer, oracle, rng = case.encoder.tokenizer, case.oracle, random.Random(5)
    markers = [oracle.decode([i]) for i in tokenizer.marker_ids]
    for number in range(40):
        text = (" ", "", "\n")[number % 3] + tools.some_text(rng)
        assert raw_ids(tokenizer, text) == oracle(text)["input_ids"]
        assert raw_ids(tokenizer, text, special=True) == oracle(text)["input_ids"]
        own = tokenizer.marker_ids & set(tokenizer.opening)
        for typed in (rng.choice(markers) + text, text + rng.choice(markers) + text):
            assert tokenizer.marker_ids.isdisjoint(set(raw_ids(tokenizer, typed)) - own)
            assert tokenizer.marker_ids.isdisjoint(raw_ids(tokenizer, typed, opening=False))
    assert raw_ids(with_bos.encoder.tokenizer, "x")[0] == with_bos.oracle.bos_token_id


def test_half_a_character_is_refused(encoders):
    with pytest.raises(BadRequest, match="surrogate"):
        raw_ids(encoders["mini"].tokenizer, "half \ud800")
