"""Stop strings against a definition of one line, for any text in any pieces."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opsin_server.text.stops import StopFinder

LETTERS = st.text("ab", max_size=4)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def definition(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))], True
    return text, False


def could_become(text: str, stops: list[str]) -> str:
    """The longest end of the text that begins a stop string."""
    ends = [text[at:] for at in range(len(text))]
    return next((end for end in ends if any(stop.startswith(end) for stop in stops)), "")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(LETTERS, max_size=6), STOPS)
@example(["a", "b"], ["ab"])
def test_pieces_make_no_difference(pieces, stops):
    finder, shown, stopped, seen = StopFinder(stops), "", False, ""
    for piece in pieces:
        out, stopped = finder.push(piece)
        shown += out
        seen += piece
        if stopped:
            break
        assert shown + could_become(seen, stops) == seen  # held back: what can still become one, and no more
    shown += finder.finish()
    assert (shown, stopped) == definition("".join(pieces), stops)


def test_the_one_that_ends_first_counts():
    assert StopFinder(["abcd", "bc"]).push("xabcd") == ("xa", True)
    assert StopFinder(["bc", "abc"]).push("xabcd") == ("x", True)


def test_nothing_follows_a_stop():
    finder = StopFinder(["."])
    assert finder.push("a.b") == ("a", True)
    assert finder.push("c.") == ("", True)
    assert finder.finish() == ""


def test_without_stops_text_passes():
    assert StopFinder([]).push("abc") == ("abc", False)


def test_an_empty_stop_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        StopFinder(["a", ""])


def test_cost_is_linear_for_strings_that_nearly_match():
    finder, start = StopFinder(["a" * 20_000 + "b"]), time.process_time()
    for _ in range(10_000):
        finder.push("aaaa")
    assert time.process_time() - start < 2
