"""Which worker of pytest-xdist runs what. (Its own groups, by marks, are no groups since pytest 9.2.)"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# What begins with one of these, as if it were one module, for what takes long to make.
TOGETHER = (
    ("tests/e2e/test_adapters",),  # adapters, what is said with each of them, and one server
    ("tests/server/storage/",),  # PostgreSQL and S3
    ("tests/deploy/test_wheel.py", "tests/kernels/test_cpu.py"),  # the C kernels of every level
)


class ModuleScheduling(LoadFileScheduling):
    """One worker has all tests of a module, so that what they share is made once; modules in the order of collection,
    not the smallest last, which are not the shortest."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return next((names[0] for names in TOGETHER if nodeid.startswith(names)), super()._split_scope(nodeid))
