"""Which lines run: enough and no more, tenants in turn, and none that a failing engine drags along."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from opsin_server.batch_metrics import BatchMetrics
from opsin_server.batches import window
from opsin_server.batches.answers import Answer, LineRequest
from opsin_server.batches.window import AHEAD, GIVE_UP_AFTER, Window
from support.batch_server import FakeAnswers
from support.stepped_loop import SteppedLoop


class Lines:
    endpoint = "/v1/chat/completions"

    def __init__(self, tenant: str, name: str, count: int, poison: int | None = None) -> None:
        self.tenant = tenant
        kinds = ["poison" if number == poison else "good" for number in range(count)]
        self.left = [
            LineRequest(number, name, json.dumps({"n": f"{name}{number}", "is": kind}).encode())
            for number, kind in enumerate(kinds)
        ]
        self.done: dict[int, int] = {}

    async def next(self) -> LineRequest | None:
        return self.left.pop(0) if self.left else None

    async def answered(self, request: LineRequest, answer: Answer) -> None:
        assert request.line not in self.done
        self.done[request.line] = answer.status


class Case:
    def __init__(self, most: int) -> None:
        self.loop, self.engine = SteppedLoop(), FakeAnswers()
        self.window = self.loop.run(self._made(most))

    async def _made(self, most: int) -> Window:
        return Window(self.engine, lambda error: Answer(500, "req", b"{}"), most, BatchMetrics(CollectorRegistry()))

    @property
    def going(self) -> list[str]:
        return [json.loads(body)["n"] for body, _ in self.engine.going]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(window, "RETRY_SECONDS", 0.003)
    case = Case(4)
    yield case
    case.loop.run(case.window.close())
    case.loop.kill()


def test_tenants_have_turns_and_of_one_the_oldest_batch_goes_first(case: Case) -> None:
    for lines in (Lines("a", "a", 9), Lines("a", "later", 9), Lines("b", "b", 3)):
        case.window.add(lines)
    case.loop.tick(50)
    assert case.going == ["a0", "b0", "a1", "b1"], "so many at a time"
    for _ in range(4):
        case.engine.work(0)
        case.loop.tick(20)
    assert case.going == ["a2", "b2", "a3", "a4"], "and where the others have none, all places"


def test_few_are_prepared_before_the_engine_begins_with_them() -> None:
    case, waits = Case(100), list[bytes]()

    async def never(endpoint: str, body: bytes, started: object) -> Answer:
        waits.append(body)
        return await asyncio.get_running_loop().create_future()

    case.window._run = never  # type: ignore[assignment]
    case.window.add(Lines("a", "a", 50))
    case.loop.tick(200)
    assert len(waits) == AHEAD
    case.loop.run(case.window.close())
    case.loop.kill()


def test_a_line_at_which_the_engine_dies_does_not_take_its_neighbours_along(case: Case) -> None:
    lines = Lines("a", "a", 12, poison=2)
    case.window.add(lines)
    deaths = 0
    for _ in range(2000):
        case.loop.tick(5)
        if any(json.loads(body)["is"] == "poison" for body, _ in case.engine.going):
            alone = len(case.engine.going) == 1
            assert alone or deaths < 2, "then it is run alone"
            place = next(i for i, (body, _) in enumerate(case.engine.going) if json.loads(body)["is"] == "poison")
            case.engine.work(place)
            deaths += 1
        else:
            case.engine.work(0)
        if len(lines.done) == 12:
            break
    assert deaths == GIVE_UP_AFTER
    assert lines.done == {number: 500 if number == 2 else 200 for number in range(12)}


def test_what_is_taken_away_is_not_run_on(case: Case) -> None:
    gone, stays = Lines("a", "a", 9), Lines("b", "b", 9)
    case.window.add(gone)
    case.window.add(stays)
    case.loop.tick(50)
    case.loop.run(case.window.remove(gone))
    case.loop.tick(50)
    assert case.going == ["b0", "b1", "b2", "b3"]
