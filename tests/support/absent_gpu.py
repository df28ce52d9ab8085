"""Models on the CPU, with kernels compiled for a chip that is not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from opsin_kernels import dispatch
from opsin_kernels.tools.stand_in_driver import Absent, absent


@contextmanager
def pretended(chip: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Absent]:
    """Within it tensors of the CPU are taken for the chip's."""
    with monkeypatch.context() as patch, absent(chip) as gpu:
        patch.setattr(dispatch, "INTERPRETED", True)
        yield gpu
