"""For the run of the SDK's tests (`pytest -p sdk.plugin`): before each of them the placeholders are as it needs them,
and of each it is noted how often it asked the server."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from sdk import originals
from sdk.placeholders import Placeholders
from sdk.verdict import ASKED
from support.served import PLAIN, wait_for
from support.webhook_host import webhook_host

DATABASE = "--opsin-database"
COUNTED_SECONDS = 0.05  # a request is counted only after the last byte of its answer
DELETED = "ft:gpt-4o-mini:acemeco:suffix:abc123"  # a model's name
STATUS = {"cancel": "running", "pause": "running", "resume": "paused"}  # of jobs, by what a test does


class Seeding:
    def __init__(self, url: str, database: Path) -> None:
        """url: of the API, with its /v1."""
        self._http = httpx.Client(base_url=url.removesuffix("/v1"), timeout=60, **PLAIN)
        self._held = ExitStack()
        hook = self._held.enter_context(webhook_host())
        self._placeholders = Placeholders(database, originals.made(url, hook.url))
        self._answered = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        for job_id in self._placeholders.going():  # a test may have made it, and its rows are still written to
            self._http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        wait_for(lambda: not self._counted("opsin_jobs{"), 60, "a cancelled job did not end")
        wait_for(lambda: not self._counted("opsin_batches{"), 60, "a batch of one request did not end")
        self._http.post("/v1/aliases", json={"alias": DELETED, "target": originals.MODEL})
        self._placeholders.put_back(STATUS.get(item.originalname.rpartition("_")[2], "succeeded"))
        self._answered += self._asked()

    def pytest_runtest_teardown(self, item: pytest.Function) -> None:
        if not (asked := self._asked()):
            time.sleep(COUNTED_SECONDS)
            asked = self._asked()
        item.user_properties.append((ASKED, asked))

    def pytest_unconfigure(self) -> None:
        self._placeholders.close()
        self._held.close()
        self._http.close()

    def _asked(self) -> int:
        return self._counted("opsin_requests_total{") - self._answered

    def _counted(self, metric: str) -> int:
        """The sum of its series, less what is asked here itself."""
        lines = [line for line in self._http.get("/metrics").text.splitlines() if line.startswith(metric)]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if '"/metrics"' not in line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(DATABASE, type=Path, required=True, help="the file of the server's SQLite database")


def pytest_sessionstart(session: pytest.Session) -> None:
    seeding = Seeding(os.environ["TEST_API_BASE_URL"], session.config.getoption(DATABASE))
    session.config.pluginmanager.register(seeding)
