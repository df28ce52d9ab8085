"""Jobs against a model of them: statuses move as they may, events are kept in order, nothing is there twice."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.backup import TABLES
from opsin_server.storage.job_records import ENDED, MOVES, SAME_SECONDS
from opsin_server.storage.records import Job, NewEvent, NewJob
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.stored import TENANT, outcome, put

STATUSES = st.sampled_from(sorted(MOVES))
NUMBERS = st.integers(0, 4)  # of jobs, in the order in which they were made; one that is not there too


@dataclass
class Known:
    """What the model knows of a job."""

    id: str
    request: str
    key: str | None
    status: str = "validating_files"
    messages: list[str] = field(default_factory=list)
    checkpoints: dict[int, str] = field(default_factory=dict)
    at: float = 0.0


class Jobs(RuleBasedStateMachine):
    made: Path
    database: str | None = None

    @initialize()
    def begin(self) -> None:
        self.folder, self.now = tempfile.TemporaryDirectory(), 1000.0
        if self.database is None:
            shutil.copytree(self.made, f"{self.folder.name}/data")
        self.state = self.opened()
        if self.database is not None:
            with self.state.database.write() as session:
                for table in reversed(TABLES):
                    session.execute(table.delete())
        self.blob = put(self.state, b"rows").digest
        self.known: list[Known] = []

    def opened(self) -> State:
        return State.open(StorageConfig(data_dir=f"{self.folder.name}/data", database=self.database), lambda: self.now)

    def job(self, number: int) -> Known:
        return self.known[number] if number < len(self.known) else Known("ftjob-none", "", None)

    @rule(request=st.sampled_from("xy"), key=st.sampled_from([None, "k", "l"]))
    def create(self, request: str, key: str | None) -> None:
        new = NewJob("me", {"metadata": {"r": request}}, request, key, (self.blob,), (NewEvent("validating"),))
        if key is not None:
            same = next((job for job in self.known if job.key == key), None)
            if same is not None and same.request != request:
                assert outcome(lambda: self.state.jobs.create(TENANT, new)) is BadRequest
                return
        else:
            young = [
                job for job in self.known
                if job.request == request and job.key is None and job.at > self.now - SAME_SECONDS
                and job.status not in ("failed", "cancelled")
            ]  # fmt: skip
            same = young[-1] if young else None
        found, is_new = self.state.jobs.create(TENANT, new)
        assert is_new == (same is None)
        if same is not None:
            assert found.id == same.id
        else:
            messages = [f"Created fine-tuning job: {found.id}", "validating"]
            self.known.append(Known(found.id, request, key, messages=messages, at=self.now))

    @rule(number=NUMBERS, status=STATUSES)
    def move(self, number: int, status: Any) -> None:
        job, event = self.job(number), NewEvent(f"moved to {status}")
        found = outcome(lambda: self.state.jobs.move(TENANT, job.id, status, [event], trained_tokens=7))
        if job.id == "ftjob-none":
            assert found is NotFound
        elif status not in MOVES[job.status]:  # type: ignore[index]
            assert found is BadRequest
        else:
            assert found is None
            job.status = status
            job.messages.append(event.message)

    @rule(number=NUMBERS, texts=st.lists(st.text(max_size=3), max_size=3))
    def note(self, number: int, texts: list[str]) -> None:
        job = self.job(number)
        if job.id == "ftjob-none":
            return
        goes_on = job.status not in ENDED
        texts = [text.replace("\0", "") for text in texts if text.isprintable()]
        assert self.state.jobs.note(TENANT, job.id, [NewEvent(text) for text in texts]) == goes_on
        job.messages += texts if goes_on else []

    @rule(number=NUMBERS, step=st.integers(1, 3))
    def checkpoint(self, number: int, step: int) -> None:
        job = self.job(number)
        if job.id == "ftjob-none":
            return
        self.state.jobs.add_checkpoint(TENANT, job.id, step, f"m{step}", {"step": step}, [NewEvent(f"at {step}")])
        if step not in job.checkpoints:
            job.checkpoints[step] = f"m{step}"
            job.messages.append(f"at {step}")

    @rule(number=NUMBERS, step=st.integers(1, 3))
    def forget(self, number: int, step: int) -> None:
        job = self.job(number)
        self.state.jobs.remove_checkpoint(TENANT, job.id, step)
        job.checkpoints.pop(step, None)

    @rule(seconds=st.sampled_from([0.5, SAME_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.database is None)
    @rule()
    def restart(self) -> None:
        self.state.close()
        self.state = self.opened()

    @invariant()
    def the_two_say_the_same(self) -> None:
        for job in getattr(self, "known", []):
            found = self.state.jobs.get(TENANT, job.id)
            assert found.status == job.status
            assert (found.finished is not None) == (job.status in ENDED)
            events = self.state.jobs.events(TENANT, job.id).items
            assert [event.message for event in events] == job.messages[::-1]
            assert len({event.id for event in events}) == len(events)
            checkpoints = self.state.jobs.checkpoints(TENANT, job.id).items
            assert {one.step: one.model for one in checkpoints} == job.checkpoints
        if hasattr(self, "known"):
            going = {job.id for job in self.known if job.status in ("validating_files", "queued", "running")}
            assert {job.id for _, job in self.state.jobs.unfinished("me")} == going
            assert self.state.jobs.unfinished("another") == []

    def teardown(self) -> None:
        if hasattr(self, "state"):
            self.state.close()
            self.folder.cleanup()


def stateful(made: Path, database: str | None, examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    found = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, suppress_health_check=checks
    )
    run_state_machine_as_test(type("Jobs", (Jobs,), {"made": made, "database": database}), settings=found)


def test_jobs_against_a_model(made: Path, database: str | None) -> None:
    stateful(made, database, 5, 20)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_jobs_against_a_model_at_length(made: Path, database: str | None) -> None:
    stateful(made, database, 1000, 30)


# ----------------------------------------------------------------------------------------------------- by hand


def create(state: State, request: str, **metadata: str) -> Job:
    blob = put(state, request.encode()).digest
    return state.jobs.create(TENANT, NewJob("me", {"metadata": metadata}, request, None, (blob,)))[0]


def test_pages_of_jobs_and_events(state: State) -> None:
    made = [create(state, f"{number}", parity=str(number % 2)).id for number in range(5)]
    page = state.jobs.page(TENANT, after=None, limit=3, metadata={})
    assert ([job.id for job in page.items], page.has_more) == (made[:1:-1], True)
    page = state.jobs.page(TENANT, after=made[2], limit=3, metadata={})
    assert ([job.id for job in page.items], page.has_more) == (made[1::-1], False)
    assert [job.id for job in state.jobs.page(TENANT, after=None, limit=9, metadata={"parity": "1"}).items] == [
        made[3],
        made[1],
    ]
    state.jobs.note(TENANT, made[0], [NewEvent(f"{number}") for number in range(4)])
    first = state.jobs.events(TENANT, made[0], limit=2)
    assert ([event.message for event in first.items], first.has_more) == (["3", "2"], True)
    rest = state.jobs.events(TENANT, made[0], after=first.items[-1].id)
    assert [event.message for event in rest.items] == ["1", "0", f"Created fine-tuning job: {made[0]}"]
    for ask in (state.jobs.events, state.jobs.checkpoints):
        with pytest.raises(NotFound):
            ask(TENANT, made[0], after="nothing")
    with pytest.raises(NotFound):
        state.jobs.page(TENANT, after="nothing", limit=1, metadata={})
    with pytest.raises(NotFound):
        state.jobs.get("other", made[0])


def test_jobs_without_metadata_are_found(state: State) -> None:
    create(state, "labelled", a="b")
    bare = create(state, "bare")
    assert [job.id for job in state.jobs.page(TENANT, after=None, limit=9, metadata=None).items] == [bare.id]


def test_what_a_job_reads_is_kept(state: State) -> None:
    blob = put(state, b"rows")
    with pytest.raises(NotFound):
        state.jobs.create(TENANT, NewJob("me", {}, "r", None, (blob.digest, "0" * 64)))
    state.jobs.create(TENANT, NewJob("me", {}, "r", None, (blob.digest,)))
    state.blobs.collect(-1e6)
    assert state.blobs.get(TENANT, blob.digest).digest == blob.digest
