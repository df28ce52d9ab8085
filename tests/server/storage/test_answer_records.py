"""Answers that are kept, on each database: found by what is written on them, a tenant's alone, and never too many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from opsin_server.errors import NotFound
from opsin_server.storage.records import NewAnswer
from opsin_server.storage.state import State
from support.clock import Clock
from support.stored import TENANT

LASTS = 100.0


def new(number: int, **metadata: str) -> NewAnswer:
    said = ({"role": "user", "content": "\0 \ud800 ü"},)
    return NewAnswer(f"a{number:03d}", "response", "m", {"text": "\0 \ud800 ü"}, said, metadata)


def found(state: State, tenant: str = TENANT, **metadata: str) -> list[str]:
    page = state.answers.page(
        tenant, "response", LASTS, after=None, limit=100, newest_first=False, metadata=metadata
    )  # fmt: skip
    return [answer.id for answer in page.items]


def test_answers_are_found_by_their_pairs_and_by_their_tenant_alone(state: State, clock: Clock) -> None:
    odd = {'a"b]%_': "x'y"}
    for number, metadata in enumerate([{"a": "1", "b": "2"}, {"a": "1"}, {"a": "2"}, odd]):
        state.answers.add(TENANT, new(number, **metadata), 10)
        clock.ahead += 1
    state.answers.add("other", new(0, a="1"), 10)
    assert found(state, a="1") == ["a000", "a001"]
    assert found(state, a="1", b="2") == ["a000"]
    assert found(state, **odd) == ["a003"]
    kept = state.answers.get(TENANT, "response", "a000", LASTS)
    assert (kept.said, kept.answer, kept.metadata) == (new(0).said, new(0).answer, {"a": "1", "b": "2"})
    state.answers.relabel(TENANT, "response", "a000", {"c": "3"}, LASTS)
    assert found(state, a="1") == ["a001"]
    with pytest.raises(NotFound):
        state.answers.get(TENANT, "chat.completion", "a000", LASTS)
    state.answers.delete(TENANT, "response", "a000", LASTS)
    assert found(state) == ["a001", "a002", "a003"]
    assert found(state, "other") == ["a000"]
    clock.ahead += LASTS - 2
    assert found(state) == ["a003"]
    state.answers.expire(LASTS)
    clock.ahead = 0
    assert found(state) == ["a003"]


def test_of_many_that_come_at_once_no_more_are_kept_than_may(state: State) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: state.answers.add(TENANT, new(number, a="1"), 5), range(24)))
    assert len(found(state)) == len(found(state, a="1")) == 5
