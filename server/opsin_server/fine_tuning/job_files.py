"""The files of a job, read whole before it trains: every fault with its line, and what may surprise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from opsin_server.errors import BadRequest, StorageFailed
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.jobs.prepare import DataRefused, Source
from opsin_server.jobs.prepared import Prepared
from opsin_server.jobs.prepared_data import PreparedData
from opsin_server.lasting import lasting_in_thread
from opsin_server.storage.records import Job, NewEvent

SHOWN_FAULTS = 20  # of a file, each as an event; the error counts them all


async def read_files(
    job: Job, options: JobOptions, place: Workplace, folder: Path, check: Callable[[], None]
) -> tuple[PreparedData, list[NewEvent]]:
    """What is trained on, in `folder`, and remarks. check: called for each line; what it raises ends the work. Raises
    DataRefused, BadRequest."""
    asked, source = job.asked, place.source(options)

    async def read(digest: str, source: Source, name: str) -> Prepared:
        path = await lasting_in_thread(job.id, lambda: place.state.blobs.local_path(place.tenant, digest), check)
        try:
            return await asyncio.to_thread(place.prepare, path, source, folder / name, lambda lines: check())
        except OSError as error:
            raise StorageFailed(f"the files cannot be prepared: {error.strerror or error}") from error

    train, valid = await read(asked["training_digest"], source, "train"), None
    if asked["validation_digest"] is not None:
        few = replace(source, role="validation", options=msgspec.structs.replace(source.options, min_rows=1))
        valid = await read(asked["validation_digest"], few, "valid")
    found = {"training_file": train} | ({} if valid is None else {"validation_file": valid})
    _check_kinds(found, asked["method"]["type"])
    data = PreparedData(train, valid)
    await asyncio.to_thread(data.shape)
    remarks = [
        NewEvent(f"{param}: {line}", "warn")
        for param, prepared in found.items()
        for line in prepared.report.surprises(SHOWN_FAULTS)
    ]
    return data, remarks


def faults_of(error: DataRefused, job: Job) -> list[NewEvent]:
    """Events for the job that is refused; of two files, each names its own."""
    report, of_file = error.report, "" if job.asked["validation_digest"] is None else f"{error.param}: "
    events = [NewEvent(f"{of_file}{fault}", "error") for fault in report.faults[:SHOWN_FAULTS]]
    if report.fault_count > len(events):
        events.append(NewEvent(f"{of_file}{report.fault_count - len(events):,} more faults", "error"))
    return events


def _check_kinds(files: dict[str, Prepared], method: str) -> None:
    wanted, other = ("supervised", "dpo") if method == "supervised" else ("preference", "supervised")
    for param, found in files.items():
        if found.kind != wanted:
            raise BadRequest(
                f"the {param.replace('_', ' ')} holds {found.kind} rows, and the method {method} is trained on "
                f"{wanted} ones: give method.type '{other}', or another file",
                param=param,
                code=f"invalid_{param}",
            )
