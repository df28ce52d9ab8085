"""Whatever a stranger uploads is a row or a sentence: never another exception, and never a wrong reading."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_plugins.spec import ImageBudget
from opsin_server.errors import BadRequest
from opsin_server.jobs.examples import TrainingExample, examples_of
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.place_images import TAG
from opsin_server.jobs.row_forms import FORMS, HARMLESS, REFUSED, read_example
from opsin_server.text.conversation import TextPart, image_parts

LIMITS = DataLimits()
WORDS = ["messages", "role", "content", "user", "assistant", "system", "type", "text", "image", "image_url", "url",
         "conversations", "from", "value", "human", "gpt", "prompt", "completion", "chosen", "rejected", "input",
         "preferred_output", "non_preferred_output", "images", "weight", "tools", "name", "path", TAG, "x"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(WORDS)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=15,
)
ROLE = st.sampled_from(["user", "assistant", "system", "x"])
MESSAGE = st.fixed_dictionaries({"role": ROLE, "content": ANY}, optional={"weight": ANY, "name": ANY})
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "x"]), "value": ANY}, optional={"weight": ANY})
KEYS = sorted({key for keys in FORMS.values() for key in keys} | {"image", "images", *HARMLESS[:2], *list(REFUSED)[:2]})
ROWS = st.dictionaries(
    st.sampled_from(KEYS), st.lists(MESSAGE, max_size=3) | st.lists(TURN, max_size=3) | ANY, max_size=4
)


def check(row: dict[str, Any]) -> None:
    with suppress(BadRequest):
        for example in examples_of(read_example(json.loads(json.dumps(row)), ImageBudget(), LIMITS)):
            assert len(example.learned) == len(example.messages)
            for message, learned in zip(example.messages, example.learned, strict=True):
                assert message.role == "assistant" or not learned
            assert example.messages[-1].role == "assistant"


@settings(max_examples=400, deadline=None)
@given(ROWS)
def test_any_row(row: dict[str, Any]) -> None:
    check(row)


@pytest.mark.nightly
@settings(max_examples=5_000, deadline=None)
@given(ROWS)
def test_any_row_for_long(row: dict[str, Any]) -> None:
    check(row)


def test_tags_and_images_keep_their_order_and_their_text() -> None:
    """Whatever stands around the tags, each image comes once, in the column's order, and no letter is lost."""
    rng = random.Random()
    for _ in range(300):
        turns, count = [], 0
        for _ in range(rng.randint(1, 3)):
            text = "".join(rng.choice([TAG, "a", "b\n", "\n", " ", "c"]) for _ in range(rng.randint(1, 8)))
            count += text.count(TAG)
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
        sources = [f"https://example.com/{n}.png" for n in range(count)]
        example = read_example({"messages": turns, "images": sources}, ImageBudget(), LIMITS)
        assert isinstance(example, TrainingExample)
        assert [part.source for part in image_parts(example.messages)] == sources
        for turn, message in zip(turns, example.messages, strict=True):
            told = "".join(part.text if isinstance(part, TextPart) else TAG for part in message.parts)
            assert told.replace("\n", "").replace(" ", "") == turn["content"].replace("\n", "").replace(" ", "")
            inner = turn["content"].strip("\n ").removeprefix(TAG).removesuffix(TAG).strip("\n ")
            if TAG not in inner:
                assert inner in told
