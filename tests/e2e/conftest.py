"""One server a worker for the tests that do not end theirs, and transformers beside it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from support.served import Served
from support.talk import MINI


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """With nothing but defaults. What runs on it gives everything back."""
    server = Served()
    try:
        yield server
        server.wait_idle()
        server.close()
    finally:
        server.discard()


@pytest.fixture(scope="session")
def client(served: Served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="session")
def oracle():
    from support.transformers_chat import TransformersChat  # seconds of import, for those who need it

    return TransformersChat(MINI)
