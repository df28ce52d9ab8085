"""Tests here have temporary directories of their own (`tempfile.tempdir`), which go with them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _pytests_own_is_made_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path_factory.getbasetemp()
