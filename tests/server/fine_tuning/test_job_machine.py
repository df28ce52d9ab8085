"""Jobs of a server that is asked at any moment, loses its engine, is killed, and has no room on its disk: whatever the
order, statuses move as they may, nothing is lost or told twice, and what can end well does."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from opsin_server.errors import BadRequest, StorageFailed
from opsin_server.storage.backup import TABLES
from opsin_server.storage.job_records import ENDED, SAME_SECONDS
from opsin_server.storage_config import StorageConfig
from support import job_checks as checks
from support.faults import Kind
from support.job_checks import Known
from support.job_server import JobServer, asked, rows
from support.stored import TENANT

NUMBERS = st.integers(0, 3)  # of jobs, in the order in which they were made
TICKS = st.sampled_from([30, 0, 1, 2, 3, 5, 8, 13, 30, 80])
MOST = 4  # jobs of a run
ROUNDS = 300  # in which everything ends, if nothing stands in its way
GOOD, FEW, BAD = rows(), rows(2), rows() + b"no row\n"
counted: Counter[str] = Counter()


class Jobs(RuleBasedStateMachine):
    """Rules have no preconditions: one that has nothing to do does nothing, and what is drawn does not depend on what a
    server did."""

    made: Path
    database: str | None = None

    @initialize(most=st.sampled_from([1, 2]), valid=st.booleans(), ticks=TICKS)
    def begin(self, most: int, valid: bool, ticks: int) -> None:
        self.folder, self.now = tempfile.TemporaryDirectory(), 1000.0
        if self.database is None:
            shutil.copytree(self.made, f"{self.folder.name}/data")
        self.known: dict[str, Known] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.requests: list[tuple[Any, Callable[[Any], None], int]] = []
        self.excused: set[str] = set()  # jobs that may fail
        self.wrong: list[str] = []
        self.acknowledged: set[str] = set()
        self.cancelled: set[str] = set()
        storage = StorageConfig(data_dir=f"{self.folder.name}/data", database=self.database)
        self.server = JobServer(storage, most, self.clock, self.may_train, self.moved)
        if self.database is not None:
            with self.server.state.database.write() as session:
                for table in reversed(TABLES):
                    if table.name != "store":
                        session.execute(table.delete())
        self.server.state.webhooks.create(TENANT, "all", "https://hooks.example.com", checks.KINDS)
        self.files = {"good": self.server.upload(GOOD), "bad": self.server.upload(BAD), "few": self.server.upload(FEW)}

        for seed in (1, 2):
            self.create("good", valid, None, seed, ticks)

    # ------------------------------------------------------------------------------------ what the server tells

    def clock(self) -> float:
        """Nothing happens at the same time: what is made first is the older, in every run."""
        self.now += 0.001
        return self.now

    def moved(self, job_id: str, status: str) -> None:
        self.adopt()
        self.known[job_id].statuses.append(status)
        counted["moves"] += 1

    def may_train(self, job_id: str) -> None:
        if self.known[job_id].statuses[-1] in ("succeeded", "failed"):
            self.wrong.append(f"{job_id} is trained, and has {self.known[job_id].statuses[-1]}")

    # ------------------------------------------------------------------------------------------ what is asked

    @rule(file=st.sampled_from(["good"] * 5 + ["bad"]), valid=st.booleans(), key=st.sampled_from([None, "k", "l"]),
          seed=st.sampled_from([1, 2]), ticks=TICKS)  # fmt: skip
    def create(self, file: str, valid: bool, key: str | None, seed: int, ticks: int) -> None:
        if len(self.known) == MOST:
            return
        body = asked(self.files[file], self.files["few"] if valid else None, seed=seed)
        request = json.dumps(body)

        def created(job: Any) -> None:
            counted["created jobs"] += 1
            self.adopt()
            self.acknowledged.add(job.id)
            known = self.known[job.id]
            assert known.request == request
            assert known.key == key
            assert key is None or self.keys.setdefault(key, (job.id, request)) == (job.id, request)
            same = [
                other for other in self.known.values() if key is None and other.key is None and other.request == request
                and abs(other.at - known.at) < SAME_SECONDS and other.statuses[-1] not in ("failed", "cancelled")
            ]  # fmt: skip
            assert len(same) <= 1, same

        self.ask(self.server.service.create(body, key), created, ticks)

    @rule(number=NUMBERS, ticks=TICKS)
    def cancel(self, number: int, ticks: int) -> None:
        def done(job: Any) -> None:
            counted["cancelled"] += 1
            self.cancelled.add(job.id)

        if self.known:
            self.ask(self.server.service.cancel(self.chosen(number)), done, ticks)

    @rule(number=NUMBERS, ticks=TICKS)
    def pause(self, number: int, ticks: int) -> None:
        def done(job: Any) -> None:
            counted["paused"] += 1

        if self.known:
            self.ask(
                self.server.service.pause(self.chosen(number, "validating_files", "queued", "running")), done, ticks
            )

    @rule(number=NUMBERS, again=st.booleans(), ticks=TICKS)
    def resume(self, number: int, again: bool, ticks: int) -> None:
        """again: it is asked twice at the same time."""
        if not any(known.statuses[-1] == "paused" for known in self.known.values()):
            return

        def done(job: Any) -> None:
            counted["resumed"] += 1

        job_id = self.chosen(number, "paused")
        if again:
            self.ask(self.server.service.resume(job_id), done, 0)
        self.ask(self.server.service.resume(job_id), done, ticks)

    def chosen(self, number: int, *likely: str) -> str:
        """A job's id: where there is one, of those that have a likely status."""
        fit = [known.id for known in self.known.values() if known.statuses[-1] in likely]
        fit = fit or list(self.known)
        return fit[number % len(fit)]

    def ask(self, work: Any, then: Callable[[Any], None], ticks: int) -> None:
        self.requests.append((self.server.loop.begin(work), then, self.server.faults.met))
        self.server.loop.tick(ticks)

    @rule(file=st.sampled_from(["good", "bad", "few"]))
    def delete_a_file(self, file: str) -> None:
        """And upload it again: its bytes lie there for the jobs that have named them."""
        with self.server.faults.off():
            state = self.server.state
            state.stored_files.delete(TENANT, self.files[file])
            state.blobs.collect(-1e6)
            self.files[file] = self.server.upload({"good": GOOD, "bad": BAD, "few": FEW}[file])
        counted["deleted files"] += 1

    # --------------------------------------------------------------------------------------- what goes on

    @rule(ticks=TICKS)
    def tick(self, ticks: int) -> None:
        self.server.loop.tick(ticks)

    @rule(seconds=st.sampled_from([1.0, SAME_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=NUMBERS, steps=st.integers(1, 6), ticks=TICKS)
    def train(self, number: int, steps: int, ticks: int) -> None:
        for _ in range(steps):
            going = self.server.engine.going
            if going:
                self.server.engine.work(going[number % len(going)])
                self.server.loop.tick(ticks)

    @rule()
    def settle(self) -> None:
        """What was asked for has come about: nobody trains what is not to be trained."""
        self.server.loop.tick(80)
        for job_id in self.server.engine.unstopped:
            assert self.known[job_id].statuses[-1] == "running"

    # ------------------------------------------------------------------------------------------ what goes wrong

    @rule(ticks=TICKS)
    def engine_dies_or_lives(self, ticks: int) -> None:
        if self.server.engine.ready:
            self.server.engine.die()
            counted["engine's deaths"] += 1
        else:
            self.server.engine.live()
        self.server.loop.tick(ticks)

    @rule(kindly=st.sampled_from([False, False, True]), ticks=TICKS)
    def server_dies(self, kindly: bool, ticks: int) -> None:
        self.heard()
        self.requests.clear()  # nobody hears what comes of those that are left
        if kindly:
            self.server.restart()
        else:
            self.server.kill()
        self.server.loop.tick(ticks)
        self.look(all_again=True)
        counted["server's ends" if kindly else "server's deaths"] += 1

    @rule(kind=st.sampled_from([None, None, "full", "late", "away"]), count=st.sampled_from([1, 2, 5, -1]), ticks=TICKS)
    def storage_fails(self, kind: Kind | None, count: int, ticks: int) -> None:
        self.server.faults.set(kind, count)
        self.server.loop.tick(ticks)
        counted["faults of the storage"] += kind is not None

    @rule(full=st.sampled_from([False, False, True]))
    def disk_of_the_engine(self, full: bool) -> None:
        self.server.engine.disk_is_full = full

    @rule()
    def finish(self) -> None:
        """With nothing in its way, everything ends, and as it should."""
        server = self.server
        server.faults.set(None)
        server.engine.disk_is_full = False
        if not server.engine.ready:
            server.engine.live()
        for _ in range(ROUNDS):
            for job_id in [known.id for known in self.known.values() if known.statuses[-1] == "paused"]:
                self.ask(server.service.resume(job_id), lambda job: None, 0)
            server.loop.tick(10)
            self.heard()
            self.adopt()
            for job_id in server.engine.going:
                server.engine.work(job_id)
            if not server.going and not self.requests and all(k.statuses[-1] in ENDED for k in self.known.values()):
                break
        self.look(all_again=True)
        assert server.engine.going == []
        for known in self.known.values():
            status = known.statuses[-1]
            assert status in ENDED, f"{known.id} is {status} for ever"
            assert status != "failed" or known.id in self.excused | server.unprepared | server.engine.given_up, (
                checks.said(known)
            )
            if status == "succeeded":
                job = server.state.jobs.get(TENANT, known.id)
                checks.check_success(known, job, server.state, server.adapters.served)

    # ------------------------------------------------------------------------------------------ what is true

    def adopt(self) -> None:
        """Jobs that were made, whether or not anybody was told."""
        with self.server.faults.off():
            jobs = self.server.state.jobs.page(TENANT, after=None, limit=100, metadata={}).items
        for job in reversed(jobs):
            if job.id not in self.known:
                body = {name: job.asked[name] for name in asked("")}
                row = self.server.key_of(job.id)
                self.known[job.id] = Known(
                    job.id, json.dumps(body), row, job.created, body["validation_file"] is not None
                )
                if job.asked["training_digest"] == self.server.digest(BAD):
                    self.excused.add(job.id)
        assert self.acknowledged <= {job.id for job in jobs}

    def heard(self) -> None:
        """What has become of requests: what cannot be done is refused with its reason."""
        for request in [request for request in self.requests if request[0].done()]:
            self.requests.remove(request)
            task, then, met = request
            try:
                answer = task.result()
            except StorageFailed:
                assert self.server.faults.met > met
            except BadRequest as error:
                if error.code not in ("invalid_state", "idempotency_key_reused", "invalid_file"):
                    raise
            else:
                then(answer)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "server"):
            self.look(all_again=False)

    def look(self, *, all_again: bool) -> None:
        self.heard()
        self.adopt()
        assert self.wrong == []
        assert len(set(self.server.going)) == len(self.server.going), "a job runs twice"
        with self.server.faults.off():
            state = self.server.state
            for known in self.known.values():
                checks.check_statuses(known, state.jobs.get(TENANT, known.id))
                checks.read_events(known, state, all_again=all_again)
                checks.check_events(known)
                checks.check_ends(known, state)
        for job_id in self.cancelled:
            assert self.known[job_id].statuses[-1] == "cancelled"

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.finish()
                counted["runs"] += 1
                counted.update(f"jobs {known.statuses[-1]}" for known in self.known.values())
                counted["steps"] += len(self.server.engine.steps)
        finally:
            self.server.close()
            self.folder.cleanup()
            # Thousands of dead servers would be collected in the middle of a template, whose time is bounded.
            gc.collect()


def stateful(made: Path, database: str | None, examples: int, steps: int, *, same: bool = False) -> str:
    """What was done. same: in every run."""
    counted.clear()
    gc.collect()
    gc.freeze()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    found = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=same,
        suppress_health_check=checks,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(type("Jobs", (Jobs,), {"made": made, "database": database}), settings=found)
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counted.items()))


def test_jobs_whatever_happens(made: Path) -> None:
    stateful(made, None, 40, 15, same=True)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_jobs_whatever_happens_at_length(
    made: Path, database: str | None, record_property: Callable[[str, object], None]
) -> None:
    record_property("result", stateful(made, database, 2000, 30))
