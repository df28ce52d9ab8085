"""Batches of a server that loses its engine, is killed, and has no room on its disk: whatever the order, statuses move
as they may, what was written stays as it is and comes once, and what can end well does."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from opsin_server.api.batch_service import WINDOW_SECONDS
from opsin_server.errors import BadRequest, StorageFailed
from opsin_server.storage.backup import TABLES
from opsin_server.storage.batch_records import ENDED, MOVES
from opsin_server.storage.records import Batch
from opsin_server.storage.tables import WebhookDeliveryRow
from opsin_server.storage_config import StorageConfig
from support.batch_server import BatchServer, lines
from support.faults import Kind
from support.stored import TENANT

NUMBERS = st.integers(0, 20)
TICKS = st.sampled_from([30, 0, 1, 2, 3, 5, 8, 13, 30, 80])
MOST = 4  # batches of a run
ROUNDS = 400  # in which everything ends, if nothing stands in its way
FILES = {
    "long": lines(20, line_3="refused"), "short": lines(2), "poison": lines(6, line_2="poison"),
    "bad": lines(3) + b"no line\n" + lines(1),
}  # fmt: skip
KINDS = [f"batch.{status}" for status in ENDED]
counted: Counter[str] = Counter()


@dataclass
class Known:
    """rows: results that were seen as rows. counts: completed and failed, as they were seen last."""

    file: str
    status: str = "validating"
    rows: dict[int, str] = field(default_factory=dict)
    counts: tuple[int, int] = (0, 0)
    files: tuple[str | None, str | None] | None = None


def reachable(before: str, after: str) -> bool:
    seen = {before}
    for _ in MOVES:
        seen |= {then for status in seen for then in MOVES[status]}  # type: ignore[index]
    return after in seen


class Batches(RuleBasedStateMachine):
    made: Path
    database: str | None = None

    @initialize(ticks=TICKS)
    def begin(self, ticks: int) -> None:
        self.folder, self.now = tempfile.TemporaryDirectory(), 1000.0
        if self.database is None:
            shutil.copytree(self.made, f"{self.folder.name}/data")
        self.known: dict[str, Known] = {}
        self.asked: list[tuple[Any, str | None, int]] = []
        self.cancelled: set[str] = set()
        self.server = BatchServer(
            StorageConfig(data_dir=f"{self.folder.name}/data", database=self.database), self.clock
        )
        if self.database is not None:
            with self.server.state.database.write() as session:
                for table in reversed(TABLES):
                    if table.name != "store":
                        session.execute(table.delete())
        self.server.state.webhooks.create(TENANT, "all", "https://hooks.example.com", KINDS)
        self.files = {name: self.server.upload(data) for name, data in FILES.items()}
        self.create("long", ticks)

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    # ------------------------------------------------------------------------------------------ what is asked

    @rule(file=st.sampled_from(list(FILES)), ticks=TICKS)
    def create(self, file: str, ticks: int) -> None:
        if len(self.known) < MOST:
            self.ask(self.server.create(self.files[file]), None, ticks)

    @rule(number=NUMBERS, ticks=TICKS)
    def cancel(self, number: int, ticks: int) -> None:
        if self.known:
            batch_id = list(self.known)[number % len(self.known)]
            self.ask(self.server.service.cancel(batch_id), batch_id, ticks)

    def ask(self, work: Any, cancels: str | None, ticks: int) -> None:
        self.asked.append((self.server.loop.begin(work), cancels, self.server.faults.met))
        self.server.loop.tick(ticks)

    @rule(file=st.sampled_from(list(FILES)))
    def delete_a_file(self, file: str) -> None:
        """And upload it again: its bytes lie there for the batches that have named them."""
        with self.server.faults.off():
            self.server.state.stored_files.delete(TENANT, self.files[file])
            self.server.state.blobs.collect(-1e6)
            self.files[file] = self.server.upload(FILES[file])

    # --------------------------------------------------------------------------------------- what goes on

    @rule(ticks=TICKS)
    def tick(self, ticks: int) -> None:
        self.server.loop.tick(ticks)

    @rule(number=NUMBERS, count=st.integers(1, 12), ticks=TICKS)
    def answer(self, number: int, count: int, ticks: int) -> None:
        for _ in range(count):
            self.server.engine.work(number)
        self.server.loop.tick(ticks)

    @rule(days=st.sampled_from([0.1, 0.1, 0.1, 1.1]), ticks=TICKS)
    def wait(self, days: float, ticks: int) -> None:
        self.now += days * WINDOW_SECONDS
        self.server.loop.tick(ticks)

    # ------------------------------------------------------------------------------------------ what goes wrong

    @rule(ticks=TICKS)
    def engine_dies_or_lives(self, ticks: int) -> None:
        if self.server.engine.ready:
            self.server.engine.die()
        else:
            self.server.engine.ready = True
        counted["engine's deaths"] += not self.server.engine.ready
        self.server.loop.tick(ticks)

    @rule(kindly=st.sampled_from([False, False, True]), ticks=TICKS)
    def server_dies(self, kindly: bool, ticks: int) -> None:
        self.heard()
        self.asked.clear()  # nobody hears what comes of those that are left
        if kindly and self.server.faults.kind is None:
            self.server.restart()
        else:
            self.server.kill()
        self.server.loop.tick(ticks)
        counted["server's deaths"] += 1

    @rule(kind=st.sampled_from([None, None, "full", "late", "away"]), count=st.sampled_from([1, 2, 5, -1]), ticks=TICKS)
    def storage_fails(self, kind: Kind | None, count: int, ticks: int) -> None:
        self.server.faults.set(kind, count)
        self.server.loop.tick(ticks)
        counted["faults of the storage"] += kind is not None

    def finish(self) -> None:
        """With nothing in its way, everything ends, and as it should."""
        server = self.server
        server.faults.set(None)
        server.engine.ready = True
        for _ in range(ROUNDS):
            server.loop.tick(20)
            for _ in range(20):
                server.engine.work(0)
            if not server.going and not self.asked:
                break
            self.heard()
        self.look()
        assert server.going == []
        assert server.engine.going == [], "lines of batches that have ended are still run"
        for known in self.known.values():
            assert known.status in ENDED, known

    # ------------------------------------------------------------------------------------------ what is true

    def heard(self) -> None:
        for one in [one for one in self.asked if one[0].done()]:
            self.asked.remove(one)
            task, cancels, met = one
            try:
                task.result()
            except StorageFailed:
                assert self.server.faults.met > met
            except BadRequest as error:
                if error.code not in ("invalid_state", "invalid_file"):
                    raise
            else:
                if cancels is not None:
                    self.cancelled.add(cancels)

    @invariant()
    def look(self) -> None:
        if not hasattr(self, "server"):
            return
        self.heard()
        assert len(set(self.server.going)) == len(self.server.going), "a batch runs twice"
        with self.server.faults.off():
            batches = self.server.state.batches.page(TENANT, after=None, limit=100).items
            for batch in batches:
                name = next((one for one, file in self.files.items() if file == batch.input_file), None)
                known = self.known.setdefault(batch.id, Known(name or ""))
                known.file = known.file or self._file_of(batch)
                self.check(batch, known)
            with self.server.state.database.read() as session:
                told = Counter(row.data["id"] for row in session.scalars(select(WebhookDeliveryRow)))
        assert self.known.keys() == {batch.id for batch in batches}, "one was lost"
        assert told == {batch.id: 1 for batch in batches if batch.status in ENDED}, "each end is told once"

    def _file_of(self, batch: Batch) -> str:
        """Of a batch that was first seen when its file had been replaced."""
        assert batch.digest is not None
        with self.server.state.blobs.open(TENANT, batch.digest) as opened:
            data = opened.read()
        return next(name for name, content in FILES.items() if content == data)

    def check(self, batch: Batch, known: Known) -> None:
        assert reachable(known.status, batch.status), f"{known.status} to {batch.status}"
        assert batch.id not in self.cancelled or batch.status in ("cancelling", "cancelled")
        counts, rows = (batch.completed, batch.failed), self.server.rows(batch.id)
        assert counts >= known.counts
        if batch.status not in ENDED:
            assert known.rows.items() <= rows.items(), "a result was lost or changed"
            assert len(rows) == sum(counts), "what counts is there"
            known.rows = rows
        elif known.files is None:
            self.check_end(batch, known)
            counted[f"batches {batch.status}"] += 1
        else:
            assert known.files == (batch.output_file, batch.error_file)
        known.status, known.counts = batch.status, counts

    def check_end(self, batch: Batch, known: Known) -> None:
        assert self.server.rows(batch.id) == {}
        known.files = batch.output_file, batch.error_file
        if known.file == "bad":
            assert batch.status in ("failed", "cancelled")
            assert batch.status != "failed" or [fault.line for fault in batch.errors] == [4, 5]
            assert known.files == (None, None)
            return
        assert batch.status != "failed", batch.errors
        output, errors = map(self.server.content, known.files)
        ran = [line for line in (*output, *errors) if line["response"] is not None]
        written = {line["custom_id"]: line for line in ran}
        assert len(written) == len(ran) == batch.completed + batch.failed, "each line once"
        for data in known.rows.values():
            row = json.loads(data)
            assert written[row["custom_id"]] == row, "as it was written"
        for line in ran:
            number, status = line["custom_id"].removeprefix("id "), line["response"]["status_code"]
            body = line["response"]["body"]
            assert (body == {"n": int(number)}) is (status < 500), "its own answer"
        asked = FILES[known.file].splitlines() if batch.total else []
        ids = [line["custom_id"] for line in (*output, *errors)]
        assert sorted(ids) == sorted(json.loads(line)["custom_id"] for line in asked), "nothing is lost"
        assert [line["custom_id"] for line in output] == [
            i for i in map(_id, asked) if i in {o["custom_id"] for o in output}
        ]
        left = {line["error"]["code"] for line in errors if line["response"] is None}
        assert left <= {f"batch_{batch.status}"}
        assert batch.status != "completed" or not left
        assert len(output) == batch.completed

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            self.server.close()
            self.folder.cleanup()


def _id(line: bytes) -> str:
    return str(json.loads(line)["custom_id"])


def stateful(made: Path, database: str | None, examples: int, steps: int, *, same: bool = False) -> str:
    """What was done. same: in every run."""
    counted.clear()
    gc.collect()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    found = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, derandomize=same,
        suppress_health_check=checks, report_multiple_bugs=False, phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(type("Batches", (Batches,), {"made": made, "database": database}), settings=found)
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counted.items()))


def test_batches_whatever_happens(made: Path) -> None:
    stateful(made, None, 25, 15, same=True)
    assert {f"batches {status}" for status in ENDED} <= counted.keys(), counted


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_batches_whatever_happens_at_length(
    made: Path, database: str | None, record_property: Callable[[str, object], None]
) -> None:
    record_property("result", stateful(made, database, 2000, 30))
