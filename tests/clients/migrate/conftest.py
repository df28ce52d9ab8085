from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fake_source import FakeSource, fake_source
from support.media_host import MediaHost, ok

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.fixture
def account() -> Iterator[FakeSource]:
    with fake_source() as found:
        yield found


@pytest.fixture
def png() -> bytes:
    """What begins as a picture does."""
    return PNG


@pytest.fixture
def host() -> Iterator[MediaHost]:
    """It has a.png."""
    found = MediaHost({"/a.png": ok(PNG)})
    yield found
    found.close()
