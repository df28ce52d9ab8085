"""Which worker of pytest-xdist runs what. (Its own groups, by marks, are no groups since pytest 9.2.)"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

TOGETHER = ("tests/e2e/test_adapters",)  # adapters that take long to make, and one server


class ModuleScheduling(LoadFileScheduling):
    """One worker has all tests of a module, so that what they share is made once; modules in the order of collection,
    not the smallest last, which are not the shortest."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name in TOGETHER if nodeid.startswith(name)), super()._split_scope(nodeid))
