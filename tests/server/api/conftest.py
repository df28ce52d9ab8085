from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts no test folder there

from fake_engine import FakeEngine, Script
from running_server import RunningServer

from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.clock import Clock

Start = Callable[..., RunningServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(script or engine, **changes of the configuration) gives a running server; all are closed at the end."""
    servers: list[RunningServer] = []

    def begin(engine: Any = None, **changes: Any) -> RunningServer:
        engine = engine if isinstance(engine, FakeEngine) else FakeEngine(engine or Script(b"hello"))
        servers.append(RunningServer(engine, **changes))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningServer]:
    """One server for a module's tests that change nothing of it; it answers "hello"."""
    server = RunningServer(FakeEngine(Script(b"hello")))
    yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path, clock: Clock) -> Iterator[State]:
    """What a server keeps, opened by the test."""
    with State.open(StorageConfig(data_dir=str(tmp_path / "data")), clock) as found:
        yield found
