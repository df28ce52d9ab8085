"""One server a worker for the command line's own commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.served import Served


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    server = Served()
    try:
        yield server
        server.wait_idle()
        server.close()
    finally:
        server.discard()
