"""From ids to text and logprobs: whatever the borders of outputs and stop strings, the same comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from fake_encoder import END, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_server.api.answer.output_text import UNLIKELY, OutputText, Piece
from opsin_server.ipc.messages import Logprobs, Output
from opsin_server.text.detokenizer import Detokenizer
from opsin_server.text.stops import StopFinder


def read(
    tokens: Sequence[int], sizes: Sequence[int], stops: Sequence[str] = (), finish: str = "stop"
) -> tuple[list[Piece], OutputText]:
    """sizes: how many tokens the outputs have, over and over. Reading ends where an engine would be cancelled."""
    reader = OutputText(Detokenizer(byte_tokenizer()), StopFinder(stops), byte_tokenizer())
    pieces, at, turn = [], 0, 0
    while at < len(tokens) or not at:
        ids = tuple(tokens[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(ids) or 1, turn + 1
        logprobs = tuple(Logprobs(-float(n), (), ()) for n in range(at - len(ids), at))
        pieces.append(reader.read(Output("r", ids, logprobs, finish if at >= len(tokens) else None)))
        if pieces[-1].finish:
            break
    return pieces, reader


TEXTS = st.text(alphabet="ab🙂é", max_size=30)
STOPS = st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=3), max_size=3)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(TEXTS, STOPS, SIZES)
def test_borders_of_outputs_change_nothing(text: str, stops: list[str], sizes: list[int]) -> None:
    tokens = list(text.encode())
    pieces, reader = read(tokens, sizes, stops)
    alone, lone_reader = read(tokens, [1], stops)
    assert "".join(p.text for p in pieces) == "".join(p.text for p in alone)
    assert [e.logprob for p in pieces for e in p.logprobs] == [e.logprob for p in alone for e in p.logprobs]
    assert reader.tokens == lone_reader.tokens
    assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]


@settings(max_examples=150, deadline=None)
@given(TEXTS, STOPS, SIZES)
def test_the_logprobs_are_those_of_the_shown_text(text: str, stops: list[str], sizes: list[int]) -> None:
    pieces, _ = read(list(text.encode()), sizes, stops)
    shown = "".join(p.text for p in pieces)
    entries = [e for p in pieces for e in p.logprobs]
    assert bytes(b for e in entries for b in e.bytes) == shown.encode()
    assert [e.logprob for e in entries] == [-float(n) for n in range(len(entries))]


@settings(max_examples=150, deadline=None)
@given(TEXTS, STOPS)
def test_text_and_logprobs_leave_together(text: str, stops: list[str]) -> None:
    """A token's logprobs come in the piece in which the first character of its text comes."""
    pieces, _ = read(list(text.encode()), [1], stops)
    characters, tokens = 0, 0
    for piece in pieces:
        characters += len(piece.text)
        tokens += len(piece.logprobs)
        assert tokens == len("".join(p.text for p in pieces)[:characters].encode())


@pytest.mark.parametrize(("finish", "reason"), [("stop", "stop"), ("length", "length")])
def test_half_a_character_at_the_end(finish: str, reason: str) -> None:
    pieces, _ = read(list("a🙂".encode()[:-1]), [10], [], finish)
    assert (pieces[0].text, pieces[0].finish, len(pieces[0].logprobs)) == ("a\ufffd", reason, 4)


def test_a_special_token_has_neither_text_nor_logprobs_but_counts() -> None:
    pieces, reader = read([END, 97, END, 98, END], [1])
    assert "".join(p.text for p in pieces) == "ab"
    assert [e.token for p in pieces for e in p.logprobs] == ["a", "b"]
    assert reader.tokens == 5


def test_all_tokens_have_logprobs_where_each_is_wanted() -> None:
    """Who asks for one token behind a prompt looks for one more entry than the prompt has, whatever was drawn."""
    reader = OutputText(Detokenizer(byte_tokenizer()), StopFinder([]), byte_tokenizer(), every_logprob=True)
    odds = tuple(Logprobs(-float(n), (), ()) for n in range(3))
    first = reader.read(Output("r", (END, 97), odds[:2]))
    last = reader.read(Output("r", (), odds[2:], "stop", end=END))
    assert [(e.token, e.logprob) for e in first.logprobs + last.logprobs] == [
        ("<|end|>", 0),
        ("a", -1),
        ("<|end|>", -2),
    ]
    assert (first.text + last.text, last.finish, reader.tokens) == ("a", "stop", 2)


def test_a_piece_that_shows_nothing_is_false() -> None:
    pieces, _ = read(list("🙂".encode()), [1])
    assert [bool(p) for p in pieces] == [False, False, False, True]


def test_what_json_cannot_hold() -> None:
    reader = OutputText(Detokenizer(byte_tokenizer()), StopFinder([]), byte_tokenizer())
    given_: Any = Logprobs(-math.inf, (98, END), (-math.inf, -1.0))
    entry = reader.read(Output("r", (97,), (given_,))).logprobs[0]
    assert entry.logprob == UNLIKELY
    assert [(t.token, t.logprob) for t in entry.top_logprobs] == [("b", UNLIKELY), ("<|end|>", -1.0)]
