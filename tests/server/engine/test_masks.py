"""What the rows of a step may draw: those that no grammar guides all, those that may draw nothing are refused."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

from opsin_server.engine.running.masks import masks_of
from opsin_server.engine.scheduling.sequence import AnswerGuide, GuideError


class Allowing:
    def __init__(self, *words: int) -> None:
        self._words = words

    def fill(self, address: int, size: int) -> None:
        assert size == 4 * len(self._words)
        ctypes.memmove(address, (ctypes.c_uint32 * len(self._words))(*self._words), size)

    def accept(self, token: int) -> bool:
        return False


class Failing(Allowing):
    def fill(self, address: int, size: int) -> None:
        super().fill(address, size)
        raise GuideError("the parser gave up")


def row(guide: AnswerGuide | None, min_tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(draw=3, sequence=SimpleNamespace(guide=guide, min_tokens=min_tokens, eos={1, 33}))


def test_each_row_is_as_its_grammar_says() -> None:
    chunks = [
        row(None),
        row(Allowing(0b110, 0b011)),
        row(Allowing(0, 0)),
        row(Failing(0b1, 0)),
        row(Allowing(0b110, 0b011), min_tokens=4),  # not to end yet
        row(Allowing(0b010, 0), min_tokens=4),  # it can only end
        row(Allowing(0b010, 0), min_tokens=3),
    ]
    masks = masks_of(chunks, 2)
    assert masks is not None
    assert masks.words.tolist() == [[-1, -1], [6, 3], [-1, -1], [-1, -1], [4, 1], [2, 0], [2, 0]]
    assert masks.refused == {2: "no token may follow", 3: "the parser gave up"}


def test_nothing_is_masked_where_nothing_is_guided() -> None:
    assert masks_of([row(None), row(None)], 2) is None
