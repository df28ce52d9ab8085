"""Triton kernels, interpreted, in a process of their own: whether they are is settled when Triton is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]  # `make test` comes back with the variable set


@pytest.fixture(autouse=True)
def bfloat16() -> Iterator[None]:
    """Rounded as a GPU does."""
    from support import bfloat16

    with bfloat16.right():
        yield
