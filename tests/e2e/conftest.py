"""The real SDK on the worker's server, and transformers beside it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from support.adapter_answers import Adapters
from support.served import Served
from support.talk import MINI


@pytest.fixture(scope="session")
def client(served: Served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="session")
def oracle():
    from support.transformers_chat import TransformersChat  # seconds of import, for those who need it

    return TransformersChat(MINI)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    made = Adapters(tmp_path_factory.mktemp("adapters"), 6)
    made.learn()
    said = [tuple(answers) for answers in made.expected.values()]
    assert len(set(said)) == len(said) == 7, "each answers in another way"
    return made


@pytest.fixture(scope="session")
def server(adapters: Adapters) -> Iterator[Served]:
    root = str(adapters.directories[0].parent)
    with Served("--adapter-dir", root, "--max-loras", "3", "--max-lora-rank", "16") as served:
        yield served
        served.close()


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        for adapter in client.get("/v1/aliases").json()["data"]:
            client.delete(f"/v1/aliases/{adapter['id']}")
        for adapter in client.get("/v1/adapters").json()["data"]:
            client.delete(f"/v1/adapters/{adapter['id']}")
        yield client
