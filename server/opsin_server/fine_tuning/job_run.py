"""The life of one job, from its files to a model that is served. What lasts is in the database and the job's folder, so
that a job goes on from there when the server is started again."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from opsin_server.errors import BadRequest, NotFound, OpsinError, Unavailable
from opsin_server.fine_tuning.hyperparameters import described
from opsin_server.fine_tuning.job_options import read_options
from opsin_server.fine_tuning.metrics import EVALUATED, by_step, result_csv
from opsin_server.fine_tuning.model_names import checkpoint_name, model_name
from opsin_server.fine_tuning.scribe import Scribe
from opsin_server.fine_tuning.settle import settle
from opsin_server.fine_tuning.starting_point import StartingPoint, place_start, read_start
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.ipc.training_events import TrainingEnded, TrainingEvent
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.training_settings import START, TrainingSettings
from opsin_server.jobs.prepare import DataRefused, Source, prepare
from opsin_server.jobs.prepared import Prepared
from opsin_server.jobs.prepared_data import PreparedData
from opsin_server.storage.job_records import ENDED
from opsin_server.storage.records import Job, NewEvent

log = logging.getLogger("opsin.jobs")

CHECKPOINTS = "checkpoints"  # of a run, below its job's folder
SHOWN_FAULTS = 20  # of a file, each as an event; the error counts them all
KEPT_CHECKPOINTS = 3  # that are served, as at OpenAI
RESULT_BYTES = 2**30
RETRY_SECONDS = 1.0  # where the engine, or its memory, is not there for the moment


class Stopped(Exception):
    """The job was paused or cancelled, or its server ends."""


class JobRun:
    def __init__(self, job: Job, place: Workplace) -> None:
        self.job, self._place, self._records = job, place, place.state.jobs
        self._folder = place.folder / job.id
        self._options = read_options(job.asked["opsin"])
        self._method: str = job.asked["method"]["type"]
        self._stopping = threading.Event()
        self._training: TrainingRun | None = None
        self._remarks: list[NewEvent] = []  # what may surprise in its files

    @property
    def model(self) -> str:
        return model_name(self._place.names[0], self.job.asked["suffix"], self.job.id)

    def stop(self, status: str) -> None:
        """After its row has another status: the run ends as soon as it can, with a checkpoint should it be paused."""
        self._stopping.set()
        if self._training is not None:
            self._training.stop("paused" if status == "paused" else "cancelled")

    async def run(self) -> None:
        """Whatever goes wrong is the job's, and told to its owner."""
        try:
            await self._run()
        except Stopped:
            pass
        except DataRefused as error:
            await self._refused(error)
        except OpsinError as error:
            await self._failed(error.code or "invalid_request", error.message, error.param)
        except Exception:
            log.exception("job %s failed", self.job.id)
            await self._failed("server_error", "the job failed by an error of the server; its log says more", None)
        if (await self._now()).status in ENDED:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _run(self) -> None:
        data = await self._prepared()
        settings = await self._settled(data)
        async with self._place.turn(self.job.id):
            self._check()
            await self._moved("running", [NewEvent("Fine-tuning job started")])
            ended = await self._trained(data, settings)
            while ended.waits:
                await asyncio.sleep(RETRY_SECONDS)
                self._check()
                ended = await self._trained(data, settings)
        self._check()
        if ended.status != "succeeded":
            raise BadRequest(ended.error or f"training was {ended.status}", code="training_failed")
        await self._succeeded(ended)

    # -------------------------------------------------------------------------------------------------- the data

    async def _prepared(self) -> PreparedData:
        """The files, read whole. Raises DataRefused, Stopped."""
        asked, source = self.job.asked, self._place.source(self._options)
        train = await self._file(asked["training_digest"], source, "train")
        valid = None
        if asked["validation_digest"] is not None:
            try:
                few = replace(source, options=msgspec.structs.replace(source.options, min_rows=1))
                valid = await self._file(asked["validation_digest"], few, "valid")
            except DataRefused as error:
                error.param = "validation_file"
                raise
        wanted = "supervised" if self._method == "supervised" else "preference"
        for found, param in ((train, "training_file"), (valid, "validation_file")):
            if found is not None and found.kind != wanted:
                raise BadRequest(
                    f"the file holds {found.kind} rows, and the method {self._method} is trained on {wanted} ones",
                    param=param,
                    code="invalid_training_file",
                )
        self._remarks = [
            NewEvent(f"{param}: {line}", "warn")
            for found, param in ((train, "training_file"), (valid, "validation_file"))
            for line in ([] if found is None else found.report.surprises(SHOWN_FAULTS))
        ]
        data = PreparedData(train, valid)
        await asyncio.to_thread(data.shape)
        return data

    async def _file(self, digest: str, source: Source, name: str) -> Prepared:
        def read() -> Prepared:
            path = self._place.state.blobs.local_path(self._place.tenant, digest)
            return prepare(path, source, self._folder / name, on_row)

        def on_row(lines: int) -> None:
            if self._stopping.is_set():
                raise Stopped

        return await asyncio.to_thread(read)

    async def _settled(self, data: PreparedData) -> TrainingSettings:
        """The settings, with nothing left to "auto"; the job is queued."""
        asked, rows, place = self.job.asked, data.count("train"), self._place
        start = await asyncio.to_thread(self._start)
        settings, resolved = await asyncio.to_thread(
            settle, asked, self._options, start, place.model, rows, place.micro_batch_tokens
        )
        self._check()
        if (await self._now()).status == "validating_files":
            report = described(resolved, self._method)
            events = [*self._remarks, NewEvent("Files validated, moving job to queued state")]
            await self._moved("queued", events, resolved=report)
        return settings

    def _start(self) -> StartingPoint | None:
        """The adapter that is trained on from, where the run looks for it."""
        place, start = self._place, self.job.asked.get("start")
        if start is None:
            return None
        found = read_start(start, place.state, place.tenant, place.model)
        place_start(found, place.state, place.tenant, self._folder / CHECKPOINTS / START)
        return found

    async def _refused(self, error: DataRefused) -> None:
        report = error.report
        events = [NewEvent(str(fault), "error") for fault in report.faults[:SHOWN_FAULTS]]
        if report.fault_count > len(events):
            events.append(NewEvent(f"{report.fault_count - len(events):,} more faults", "error"))
        await self._failed("invalid_training_file", error.message, error.param, events)

    # -------------------------------------------------------------------------------------------------- training

    async def _trained(self, data: PreparedData, settings: TrainingSettings) -> TrainingEnded:
        """Everything that happens is written down in the order in which it did, each step once."""
        heard: asyncio.Queue[TrainingEvent] = asyncio.Queue()
        rows = data.count("train")
        per_epoch = -(-rows // min(rows, settings.batch_size))
        total = settings.max_steps or settings.epochs * per_epoch
        scribe = Scribe(self, total, per_epoch, await asyncio.to_thread(self._told), self._place.metrics)
        run = TrainingRun(self.job.id, settings, self._folder / CHECKPOINTS, data, heard.put_nowait)
        await self._started(run)
        self._training = run
        if self._stopping.is_set():
            self.stop((await self._now()).status)
        while True:
            events = [await heard.get()]
            while not heard.empty():
                events.append(heard.get_nowait())
            await scribe.write(events)
            if isinstance(events[-1], TrainingEnded):
                return events[-1]

    async def _started(self, run: TrainingRun) -> None:
        """Waits for an engine that is being started again."""
        while True:
            self._check()
            try:
                self._place.trainer.train(run, resume=True)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    def _told(self) -> dict[int, dict[str, Any]]:
        """Numbers of steps that have been told already, before the server was started again."""
        return by_step(reversed(self._records.events(self._place.tenant, self.job.id).items))

    async def note(self, events: Sequence[NewEvent], estimated_finish: float | None = None) -> None:
        await asyncio.to_thread(
            lambda: self._records.note(self._place.tenant, self.job.id, events, estimated_finish=estimated_finish)
        )

    async def add_checkpoint(self, step: int, folder: Path, metrics: dict[str, Any]) -> None:
        """Serves it, and of all only the newest. One that cannot be served is said, and no reason to end the job."""
        place, name = self._place, checkpoint_name(self.model, step)
        try:
            await place.publisher.publish(name, folder, self.job.id)
        except OpsinError as error:
            await self.note([NewEvent(f"The checkpoint at step {step} cannot be served: {error.message}", "warn")])
            return
        event = NewEvent(f"Checkpoint created at step {step}", data={"step": step, "model": name})
        await asyncio.to_thread(self._records.add_checkpoint, place.tenant, self.job.id, step, name, metrics, [event])
        found = await asyncio.to_thread(self._records.checkpoints, place.tenant, self.job.id)
        for old in found.items[KEPT_CHECKPOINTS:]:
            await asyncio.to_thread(self._records.remove_checkpoint, place.tenant, self.job.id, old.step)
            await place.publisher.withdraw(old.model)

    # ----------------------------------------------------------------------------------------------------- ends

    async def _succeeded(self, ended: TrainingEnded) -> None:
        await self._place.publisher.publish(self.model, Path(ended.checkpoint), self.job.id)
        result = await asyncio.to_thread(self._result)
        events = [
            NewEvent(f"New fine-tuned model created: {self.model}", data={"model": self.model}),
            *await self._published_as(Path(ended.checkpoint)),
            NewEvent("The job has successfully completed"),
        ]
        await self._moved("succeeded", events, model=self.model, trained_tokens=ended.tokens, result_file=result)

    async def _published_as(self, directory: Path) -> list[NewEvent]:
        """The model under the name that was asked for; what keeps it from that is said."""
        name, publisher = self._options.publish_as, self._place.publisher
        if name is None:
            return []
        promote = self._options.promote == "on_success"
        why = ""
        if self._options.promote == "if_better":
            promote, why = await asyncio.to_thread(self._is_better, publisher.origin_of(name))
        try:
            if publisher.is_alias(name):
                if promote:
                    await publisher.set_alias(name, self.model)
            else:
                await publisher.publish(name, directory, self.job.id, promote=promote)
        except OpsinError as error:
            return [NewEvent(f"The model could not be published as {name}: {error.message}", "error")]
        done = f"{name} means the new model now" if promote else f"{name} means what it did before"
        return [NewEvent(f"{done}{why}", data={"publish_as": name, "promoted": promote})]

    def _is_better(self, other: str | None) -> tuple[bool, str]:
        """Whether its loss on the validation file is lower than that of the job that it would replace, and why."""
        if other is None:
            return True, ": it meant none"
        try:
            theirs = self._best_loss(other)
        except NotFound:
            theirs = None
        ours = self._best_loss(self.job.id)
        if ours is None or theirs is None:
            return False, ": the validation loss of what it means is not known"
        return ours < theirs, f": validation loss {ours:.4f} against {theirs:.4f}"

    def _best_loss(self, job_id: str) -> float | None:
        numbers = by_step(self._records.events(self._place.tenant, job_id).items).values()
        return min((one[EVALUATED] for one in numbers if EVALUATED in one), default=None)

    def _result(self) -> str:
        """The result file's id."""
        state, tenant = self._place.state, self._place.tenant
        text = result_csv(reversed(state.jobs.events(tenant, self.job.id).items))
        name = "step_metrics.csv"
        blob = state.blobs.put(tenant, BytesIO(text.encode()), kind="file", name=name, limit=RESULT_BYTES)
        return state.stored_files.add(tenant, blob, name, "fine-tune-results").id

    async def _failed(self, code: str, message: str, param: str | None, events: Sequence[NewEvent] = ()) -> None:
        error = {"code": code, "message": message, "param": param}
        try:
            await self._moved("failed", [*events, NewEvent(f"The job failed: {message}", "error")], error=error)
        except (Stopped, BadRequest):  # it was cancelled meanwhile
            return

    async def _moved(self, status: Any, events: Sequence[NewEvent], **changes: Any) -> None:
        """Raises Stopped where somebody has paused or cancelled it."""
        now = await self._now()
        if now.status == status == "running":  # it goes on after a start of the server
            return
        if now.status in ("paused", "cancelled"):
            raise Stopped
        await asyncio.to_thread(lambda: self._records.move(self._place.tenant, self.job.id, status, events, **changes))
        if status in ENDED:
            self._place.metrics.ended(status)

    async def _now(self) -> Job:
        return await asyncio.to_thread(self._records.get, self._place.tenant, self.job.id)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped
