"""The real SDK on the worker's server, and transformers beside it."""

from __future__ import annotations

import openai
import pytest

from support.served import Served
from support.talk import MINI


@pytest.fixture(scope="session")
def client(served: Served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="session")
def oracle():
    from support.transformers_chat import TransformersChat  # seconds of import, for those who need it

    return TransformersChat(MINI)
