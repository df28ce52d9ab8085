"""Whether a call also compiles the other forms that it may take later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_every_form: ContextVar[bool] = ContextVar("every_form", default=False)


def every_form() -> bool:
    return _every_form.get()


@contextmanager
def compiling_every_form() -> Iterator[None]:
    """Within it every call also runs as all other kernels that a call with the same tensors may need for more queries
    or keys: what a server does before its first request, so that none waits for a compiler."""
    token = _every_form.set(True)
    try:
        yield
    finally:
        _every_form.reset(token)
