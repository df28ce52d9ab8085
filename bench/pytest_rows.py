"""A pytest plugin of bench/gpu.sh: every test is a row as soon as it has run; those that have passed are left out.

`-p pytest_rows`, with the file of rows in OPSIN_BENCH_ROWS. Where a test has left the device useless to its process,
the worker ends, and pytest-xdist goes on in a fresh one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rows
from gpu_plan import TESTS

PATH = os.environ.get("OPSIN_BENCH_ROWS", "")
BROKEN = 70  # exit status of a worker whose device answers no more


class Recorder:
    """In the process that hears of every test."""

    def __init__(self, path: Path) -> None:
        self.rows, self.path = rows.Rows(path, "correct"), path
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.seconds = 0.0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failed(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.failed:
            self._failed(report)
        elif report.when == "call" and report.nodeid not in self.failed:
            self.passed.add(report.nodeid)
            self.rows.ended(report.nodeid, report.duration)

    def _failed(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.nodeid not in self.failed:
            self.failed.add(report.nodeid)
            text = report.longreprtext.strip().splitlines()
            self.rows.failed(report.nodeid, next((t for t in text if t.startswith("E ")), "".join(text[-1:])))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """One row for all of them, also those that passed in an earlier command."""
        passed = {name for name in rows.succeeded(rows.read(self.path)) if "::" in name}
        if self.failed or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            self.rows.failed(TESTS, f"{len(self.failed)} failed, {len(passed)} passed, exit status {int(exitstatus)}")
        elif passed:
            self.rows.ended(TESTS, self.seconds, passed=len(passed))


def pytest_configure(config: pytest.Config) -> None:
    if PATH and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(PATH)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What passed in this command stays: a worker that takes another one's place must find the same tests."""
    done = rows.succeeded(rows.before_command(rows.read(Path(PATH)))) if PATH else {}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if hasattr(item.config, "workerinput") and _broken():
        os._exit(BROKEN)  # this test counts as failed, and is tried again by a second command
    return (yield)


def _broken() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # whatever it says
        return True
    return False
