"""What a job does when what it stands on fails for a while."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin_server.storage_config import StorageConfig
from support import job_checks
from support.faults import Kind
from support.job_checks import Known
from support.job_server import JobServer, asked, rows
from support.stored import TENANT


@pytest.fixture
def server(tmp_path: Path, made: Path) -> Iterator[JobServer]:
    shutil.copytree(made, tmp_path / "data")
    storage = StorageConfig(data_dir=str(tmp_path / "data"))
    server = JobServer(storage, 1, lambda: 1000.0, lambda job_id: None, lambda job_id, status: None)
    yield server
    server.close()


def begun(server: JobServer) -> str:
    """A job that the engine trains."""
    body = asked(server.upload(rows()), server.upload(rows(2)), seed=1)
    job = server.loop.run(server.service.create(body, None))
    server.loop.until(lambda: server.engine.going == [job.id])
    return str(job.id)


def train(server: JobServer, job_id: str, steps: int, ticks: int = 20) -> None:
    for _ in range(steps):
        server.engine.work(job_id)
        server.loop.tick(ticks)


def check_it_ends_well(server: JobServer, job_id: str) -> None:
    server.loop.until(lambda: bool(server.engine.going) or not server.going)
    while server.engine.going:
        train(server, job_id, 1)
    server.loop.until(lambda: not server.going)
    job = server.state.jobs.get(TENANT, job_id)
    known = Known(job_id, "", None, 0.0, validates=True, statuses=[job.status])
    job_checks.read_events(known, server.state, all_again=True)
    assert job.status == "succeeded", job_checks.said(known)
    job_checks.check_events(known)
    job_checks.check_success(known, job, server.state, server.adapters.served)


@pytest.mark.parametrize("kind", ["full", "late", "away"])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_job_waits_for_a_disk_that_has_room_again(server: JobServer, kind: Kind, step: int) -> None:
    """It is trained meanwhile, and everything is told afterwards."""
    job_id = begun(server)
    train(server, job_id, step - 1)
    server.faults.set(kind)
    train(server, job_id, 1, ticks=200)
    assert server.going == [job_id]
    server.faults.set(None)
    check_it_ends_well(server, job_id)


def test_a_job_that_waits_can_be_cancelled(server: JobServer) -> None:
    job_id = begun(server)
    server.faults.set("blobs")
    train(server, job_id, 5)
    assert server.going == [job_id]
    server.loop.run(server.service.cancel(job_id))
    train(server, job_id, 1)
    server.loop.until(lambda: not server.going)
    assert server.engine.going == []


def test_a_job_that_waits_goes_on_after_a_pause(server: JobServer) -> None:
    job_id = begun(server)
    server.faults.set("blobs")
    train(server, job_id, 5)
    server.loop.run(server.service.pause(job_id))
    train(server, job_id, 1)
    server.faults.set(None)
    server.loop.run(server.service.resume(job_id))
    check_it_ends_well(server, job_id)


@pytest.mark.parametrize("kind", ["full", "late", "away"])
def test_a_fault_of_the_storage_as_a_file_is_read(server: JobServer, kind: Kind) -> None:
    body = asked(server.upload(rows()), server.upload(rows(2)), seed=1)
    job = server.loop.run(server.service.create(body, None))
    server.faults.set(kind)
    server.loop.tick(200)
    server.faults.set(None)
    if kind == "full":  # the rows that are prepared lie on that disk as well
        server.loop.until(lambda: not server.going)
        assert server.state.jobs.get(TENANT, job.id).error == {
            "code": "storage_failed",
            "message": "the files cannot be prepared: No space left on device",
            "param": None,
        }
    else:
        check_it_ends_well(server, job.id)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_steps_that_a_checkpoint_has_and_nobody_has_heard_of(server: JobServer, steps: int) -> None:
    """The server is killed between the engine's checkpoint and the events of its steps."""
    job_id = begun(server)
    train(server, job_id, steps, ticks=0)
    server.kill()
    check_it_ends_well(server, job_id)


@pytest.mark.parametrize("steps", [3, 4, 5])
@pytest.mark.parametrize("who", ["engine", "server"])
def test_a_checkpoint_that_was_not_told_of_before_a_death(server: JobServer, steps: int, who: str) -> None:
    job_id = begun(server)
    train(server, job_id, steps)
    if who == "server":
        server.kill()
    else:
        server.engine.die()
        server.engine.live()
    check_it_ends_well(server, job_id)
