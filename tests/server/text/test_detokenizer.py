"""Streamed text adds up to the decoding of all ids, whatever the ids and however they are cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from opsin_plugins.spec import SpecError
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.tokenizer import Tokenizer

NAMES = ["mini", "byte-level", "metaspace", "legacy", "unigram"]
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


def stream(tokenizer, ids, cuts) -> list[str]:
    detokenizer, out, at = Detokenizer(tokenizer), [], 0
    for size in cuts:
        out.append(detokenizer.push(ids[at : at + size]))
        at += size
    return [*out, detokenizer.push(ids[at:]), detokenizer.finish()]


@pytest.mark.parametrize("name", NAMES)
def test_any_ids_in_any_pieces(name, cases, encoders):
    tokenizer = encoders[name].tokenizer
    whole = Backend.from_file(str(cases[name].directory / "tokenizer.json"))
    anything = st.integers(0, tokenizer.vocab_size + 20)
    low = st.integers(0, min(tokenizer.vocab_size, 270) - 1)  # bytes and special tokens

    @SETTINGS
    @given(st.lists(st.one_of(anything, low), max_size=20), st.lists(st.integers(0, 3), max_size=12))
    def check(ids, cuts):
        assert "".join(stream(tokenizer, ids, cuts)) == whole.decode(ids, skip_special_tokens=True)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_text_comes_in_whole_characters(name, encoders, tools):
    tokenizer, rng = encoders[name].tokenizer, random.Random(3)
    for _ in range(100):
        ids = tokenizer.encode(tools.some_text(rng))
        pieces = stream(tokenizer, ids, [1] * len(ids))
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(pieces)


def test_a_character_waits_for_its_last_byte(encoders):
    tokenizer = encoders["mini"].tokenizer
    ids = tokenizer.encode("日x")
    assert [piece for piece in stream(tokenizer, ids, [1] * len(ids)) if piece] == ["日", "x"]


@pytest.mark.parametrize("name", ["mini", "metaspace"])
def test_an_unfinished_character_shows_at_the_end(name, encoders):
    tokenizer = encoders[name].tokenizer
    ids = tokenizer.encode_plain("a😀")[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert "\ufffd" not in "".join(detokenizer.push([i]) for i in ids)
    assert set(detokenizer.finish()) == {"\ufffd"}


def test_the_blank_at_the_start_is_dropped_once(encoders):
    tokenizer = encoders["metaspace"].tokenizer
    ids = tokenizer.encode("is a")
    assert tokenizer.token_text(ids[0]).startswith(" ")
    assert "".join(stream(tokenizer, ids, [1] * len(ids))) == "is a"


def test_a_decoder_that_changes_its_past_is_refused(cases, tmp_path):
    backend = Backend.from_file(str(cases["mini"].directory / "tokenizer.json"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SpecError, match="WordPiece"):
        Tokenizer(tmp_path)
