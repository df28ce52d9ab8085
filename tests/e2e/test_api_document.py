"""Whatever the OpenAPI document lets a client send, and what it does not: no request is answered with a 5xx, or in a
shape that the document does not have."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from support import api_cases
from support.api_lives import Lives
from support.served import Served, serving

CASES, NIGHTLY = 2000, 20_000


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One of its own: what is made up may name adapters, and keep files."""
    with serving("--store") as server:
        yield server


def asked(server: Served, cases: int, number: int) -> Counter[int]:
    engine = server.engine
    found = api_cases.run(server.get("/openapi.json").json(), server.url, cases, number)
    assert found.total() >= cases
    assert found[200] > cases // 20, "few were answered"
    assert server.engine == engine
    assert "error=" not in server.stderr, server.stderr
    return found


def test_what_is_kept_is_answered_as_the_document_has_it(server: Served):
    lives = Lives(server.get("/openapi.json").json(), server.url)
    training, batch, wrong = lives.files()
    lives.uploads()
    lives.job(training, "succeeded")
    lives.batch(batch, "completed")
    lives.batch(wrong, "failed")


def test_two_thousand_requests_of_the_document(server: Served):
    asked(server, CASES, 1)


@pytest.mark.nightly
def test_twenty_thousand_requests_of_the_document(server: Served, record_property):
    number = random.randrange(2**32)
    found = asked(server, NIGHTLY, number)
    statuses = ", ".join(f"{count:,} of {status}" for status, count in sorted(found.items()))
    record_property("result", f"{found.total():,} requests, right and wrong: {statuses}, no 5xx; seed {number}")
