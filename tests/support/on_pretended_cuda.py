"""A pytest plugin: tests that would run natively on a GPU run on a pretended one (`-p support.on_pretended_cuda`, with
TRITON_INTERPRET=1). What they do is what they would do there, down to where each tensor is made."""

from __future__ import annotations

import os
import pkgutil
from contextlib import ExitStack
from importlib import import_module

import pytest

from opsin_kernels import gpu
from support import bfloat16, pretended_cuda

for module in pkgutil.iter_modules(gpu.__path__):  # whether a kernel is interpreted is settled when it is made
    import_module(f"{gpu.__name__}.{module.name}")
STACK = ExitStack()
STACK.enter_context(bfloat16.right())
STACK.enter_context(pretended_cuda.pretended())
del os.environ["TRITON_INTERPRET"]  # while it is asked whether kernels run natively


def pytest_collection_finish(session: pytest.Session) -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_unconfigure() -> None:
    STACK.close()
