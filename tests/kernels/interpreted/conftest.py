"""Triton kernels, interpreted, in a process of their own: whether they are is settled when Triton is imported. Where
there is a GPU they run on it instead, unless TRITON_INTERPRET is set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]  # `make test` comes back with the variable set
elif not INTERPRETED:  # about models on the CPU, and the interpreter; on a GPU bench/engine.py compares whole models
    collect_ignore = [f"test_{name}.py" for name in ("whole_models", "graphs", "interpreter", "device")]


@pytest.fixture(autouse=True)
def where() -> Iterator[None]:
    """Interpreted, bfloat16 is rounded as a GPU does; on a GPU, tensors are made there."""
    if INTERPRETED:
        from support import bfloat16

        with bfloat16.right():
            yield
    else:
        with torch.device("cuda"):
            yield
