"""The life of one job, from its files to a model that is served. What lasts is in the database and the job's folder, so
that a job goes on from there when the server is started again."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from opsin_server.errors import BadRequest, OpsinError, Unavailable
from opsin_server.fine_tuning.hyperparameters import described
from opsin_server.fine_tuning.job_files import faults_of, read_files
from opsin_server.fine_tuning.job_options import read_options
from opsin_server.fine_tuning.metrics import best_step, by_step, result_csv, told_checkpoints, told_until
from opsin_server.fine_tuning.model_names import checkpoint_name, model_name
from opsin_server.fine_tuning.publish_as import publish_as
from opsin_server.fine_tuning.scribe import Scribe
from opsin_server.fine_tuning.settle import settle
from opsin_server.fine_tuning.starting_point import StartingPoint, place_start, read_start
from opsin_server.fine_tuning.tensorboard_log import FOLDER as TENSORBOARD
from opsin_server.fine_tuning.tensorboard_log import TensorBoardLog
from opsin_server.fine_tuning.workplace import Workplace
from opsin_server.ipc.training_events import StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.training_settings import START, TrainingSettings
from opsin_server.jobs.prepare import DataRefused
from opsin_server.jobs.prepared_data import PreparedData
from opsin_server.jobs.training_options import planned_steps, stopped_early
from opsin_server.lasting import RETRY_SECONDS, lasting, lasting_in_thread
from opsin_server.storage.job_records import ENDED
from opsin_server.storage.records import Job, JobEvent, NewEvent

log = logging.getLogger("opsin.jobs")

CHECKPOINTS = "checkpoints"  # of a run, below its job's folder
KEPT_CHECKPOINTS = 3  # that are served, as at OpenAI
RESULT_BYTES = 2**30

Result = TypeVar("Result")


class Stopped(Exception):
    """The job was paused or cancelled, or its server ends."""


class JobRun:
    def __init__(self, job: Job, place: Workplace) -> None:
        self.job, self._place, self._records = job, place, place.state.jobs
        self._folder = place.folder / job.id
        self._options = read_options(job.asked["opsin"])
        self._most_seconds = min(place.most_seconds, self._options.max_seconds or math.inf)
        self._method: str = job.asked["method"]["type"]
        self._stopping, self._cancelled = threading.Event(), False
        self._training: TrainingRun | None = None

    @property
    def job_id(self) -> str:
        return self.job.id

    @property
    def model(self) -> str:
        return model_name(self._place.names[0], self.job.asked["suffix"], self.job.id)

    def stop(self, status: str) -> None:
        """After its row has another status: the run ends as soon as it can, with a checkpoint should it be paused."""
        self._stopping.set()
        self._cancelled = status == "cancelled"
        if self._training is not None:
            self._training.stop("paused" if status == "paused" else "cancelled")

    async def run(self) -> None:
        """Whatever goes wrong is the job's, and told to its owner."""
        try:
            await self._run()
        except Stopped:
            pass
        except OpsinError as error:
            faults = faults_of(error, self.job) if isinstance(error, DataRefused) else []
            await self._failed(error.code or "invalid_request", error.message, error.param, faults)
        except Exception:
            log.exception("job %s failed", self.job.id)
            await self._failed("server_error", "the job failed by an error of the server; its log says more", None)
        if (await self._now()).status in ENDED:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _run(self) -> None:
        data, remarks = await read_files(self.job, self._options, self._place, self._folder, self._check)
        settings = await self._settled(data, remarks)
        async with self._place.turn(self.job.id, (self.job.status != "running", self.job.created)):
            self._check()
            await self._moved("running", [NewEvent("Fine-tuning job started")])
            ended = await self._trained(data, settings)
            while ended.waits:
                await asyncio.sleep(RETRY_SECONDS)
                self._check()
                ended = await self._trained(data, settings)
        self._check()
        if ended.status == "cancelled":  # and not by its owner
            raise BadRequest(f"training took more than {self._most_seconds:,.10g} seconds", code="time_limit_exceeded")
        if ended.status != "succeeded":
            raise BadRequest(ended.error or f"training was {ended.status}", code="training_failed")
        early = stopped_early(settings, data.count("train"), ended.step)
        await self._succeeded(ended, [NewEvent(early)] if early else [])

    async def _settled(self, data: PreparedData, remarks: Sequence[NewEvent]) -> TrainingSettings:
        """The settings, with nothing left to "auto"; the job is queued."""
        asked, rows, place = self.job.asked, data.count("train"), self._place
        start = await self._in_thread(self._start)
        settings, resolved = await asyncio.to_thread(
            settle, asked, self._options, start, place.model, rows, place.micro_batch_tokens
        )
        self._check()
        if (await self._now()).status == "validating_files":
            report = described(resolved, self._method)
            events = [*remarks, NewEvent("Files validated, moving job to queued state")]
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

    # -------------------------------------------------------------------------------------------------- training

    async def _trained(self, data: PreparedData, settings: TrainingSettings) -> TrainingEnded:
        """Everything that happens is written down in the order in which it did, each step once."""
        heard: asyncio.Queue[TrainingEvent] = asyncio.Queue()
        rows = data.count("train")
        per_epoch = -(-rows // min(rows, settings.batch_size))
        total = planned_steps(settings, rows)
        events = await self._in_thread(self._events)
        told = by_step(events)
        evaluates = settings.evaluate_every or per_epoch if data.count("valid") else 0
        known = told_until(told, told_checkpoints(events), total, per_epoch, evaluates)
        log = self._tensorboard()
        scribe = Scribe(self, total, per_epoch, told, self._place.metrics, log)
        run = TrainingRun(self.job.id, settings, self._folder / CHECKPOINTS, data, heard.put_nowait, known)
        try:
            await self._started(run)
            return await self._followed(run, heard, scribe)
        finally:
            self._place.metrics.left(self.job.id)
            if log is not None:
                await asyncio.to_thread(log.close)

    async def _followed(self, run: TrainingRun, heard: asyncio.Queue[TrainingEvent], scribe: Scribe) -> TrainingEnded:
        self._training = run
        try:
            if self._stopping.is_set():
                self.stop((await self._now()).status)
            while True:
                events = [await heard.get()]
                while not heard.empty():
                    events.append(heard.get_nowait())
                await scribe.write(events)
                if any(isinstance(event, StepDone) and event.seconds > self._most_seconds for event in events):
                    run.stop("cancelled")
                if isinstance(events[-1], TrainingEnded):
                    return events[-1]
        except Exception:
            if not self._stopping.is_set():
                run.stop("cancelled")
            await run.finished()  # nobody trains for a job that does not hear of it
            raise

    def _tensorboard(self) -> TensorBoardLog | None:
        wanted = any(one["type"] == "tensorboard" for one in self.job.asked.get("integrations", ()))
        return TensorBoardLog(self._place.state.directory.path / TENSORBOARD / self.job.id) if wanted else None

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

    def _events(self) -> list[JobEvent]:
        """What has been told already, before the server was started again; the oldest first."""
        return list(reversed(self._records.events(self._place.tenant, self.job.id).items))

    async def note(self, events: Sequence[NewEvent], estimated_finish: float | None = None) -> None:
        await self._in_thread(
            lambda: self._records.note(self._place.tenant, self.job.id, events, estimated_finish=estimated_finish)
        )

    async def add_checkpoint(self, step: int, folder: Path, metrics: dict[str, Any]) -> None:
        """Serves it, and of all only the newest and the best, which may become the model. One that cannot be served is
        said, and no reason to end the job."""
        place, name, records = self._place, checkpoint_name(self.model, step), self._records
        known = await self._in_thread(lambda: records.checkpoints(place.tenant, self.job.id))
        if step in [one.step for one in known.items]:  # told again by an engine that was started again
            return
        try:
            await self._lasting(lambda: place.publisher.publish(name, folder, self.job.id))
        except OpsinError as error:
            sentence = f"The checkpoint at step {step} cannot be served: {error.message}"
            await self.note([NewEvent(sentence, "warn", data={"step": step})])
            return
        event = NewEvent(f"Checkpoint created at step {step}", data={"step": step, "model": name})
        await self._in_thread(lambda: records.add_checkpoint(place.tenant, self.job.id, step, name, metrics, [event]))
        found = await self._in_thread(lambda: records.checkpoints(place.tenant, self.job.id))
        best = best_step(found.items)
        for old in [one for one in found.items[KEPT_CHECKPOINTS:] if one.step != best]:
            await self._in_thread(partial(records.remove_checkpoint, place.tenant, self.job.id, old.step))
            await self._lasting(partial(place.publisher.withdraw, old.model))

    # ----------------------------------------------------------------------------------------------------- ends

    async def _succeeded(self, ended: TrainingEnded, remarks: Sequence[NewEvent]) -> None:
        directory, place = Path(ended.checkpoint), self._place
        await self._lasting(lambda: place.publisher.publish(self.model, directory, self.job.id))
        result, step = await self._in_thread(self._result), int(directory.name.rpartition("-")[2])
        if step < ended.step:
            sentence = f"The model is as it was at step {step}, where its validation loss was the lowest"
            remarks = [*remarks, NewEvent(sentence, data={"step": step})]
        events = [
            *remarks,
            NewEvent(f"New fine-tuned model created: {self.model}", data={"model": self.model}),
            *await self._lasting(lambda: publish_as(self._options, self.job, self.model, directory, place)),
            NewEvent("The job has successfully completed"),
        ]
        await self._moved("succeeded", events, model=self.model, trained_tokens=ended.tokens, result_file=result)

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
        await self._in_thread(lambda: self._records.move(self._place.tenant, self.job.id, status, events, **changes))
        if status in ENDED:
            self._place.metrics.ended(status)

    async def _now(self) -> Job:
        return await lasting_in_thread(self.job.id, lambda: self._records.get(self._place.tenant, self.job.id))

    async def _in_thread(self, act: Callable[[], Result]) -> Result:
        return await lasting_in_thread(self.job.id, act, self._check_wanted)

    async def _lasting(self, act: Callable[[], Awaitable[Result]]) -> Result:
        return await lasting(self.job.id, act, self._check_wanted)

    def _check_wanted(self) -> None:
        """Paused, it still waits: what was to be written then would be missing when it goes on."""
        if self._cancelled:
            raise Stopped

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped
