"""The fine-tuning jobs of a running server: what is asked of them, and who runs them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from opsin_plugins.loading.open_model import OpenModel
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.adapters.importer import ImportOptions
from opsin_server.api.adapter_service import AdapterService, check_name
from opsin_server.config import ServerConfig
from opsin_server.errors import BadRequest, ConfigError, NotFound, OpsinError, Unavailable
from opsin_server.fine_tuning.file_check import FileCheck, FileChecks
from opsin_server.fine_tuning.job_options import JobOptions, read_options, refused_option
from opsin_server.fine_tuning.job_queue import JobQueue
from opsin_server.fine_tuning.job_run import JobRun
from opsin_server.fine_tuning.starting_point import check_options, described_start, read_start
from opsin_server.fine_tuning.tensorboard_log import check_installed
from opsin_server.fine_tuning.workplace import Prepare, Trainer, Workplace
from opsin_server.ipc.memory_messages import AdapterRoom
from opsin_server.ipc.messages import Ready
from opsin_server.job_metrics import JobMetrics
from opsin_server.jobs.prepare import Source
from opsin_server.jobs.prepare_process import prepare_apart
from opsin_server.jobs.what_trains import chosen_modules
from opsin_server.media.file_id import ReadFile
from opsin_server.storage.job_records import ENDED
from opsin_server.storage.records import (
    TENANT,
    Job,
    JobCheckpoint,
    JobEvent,
    JobStatus,
    NewEvent,
    NewJob,
    Page,
    StoredFile,
)
from opsin_server.storage.state import State
from opsin_server.text.encode_prompt import PromptEncoder

log = logging.getLogger("opsin.jobs")

MICRO_BATCH = {"cpu": 256, "cuda": 2048}  # tokens: a piece takes less time than a step of so many rows of a prompt
LARGEST_SEED = 2**31 - 1
FOLLOW_SECONDS = 0.5  # between looks at what has happened


class FineTuningService:
    """Made before the engine is ready; `open` when it is."""

    def __init__(
        self,
        config: ServerConfig,
        state: State,
        trainer: Trainer,
        model: OpenModel | None,
        encoder: PromptEncoder | None,
        adapters: AdapterService,
        names: tuple[str, ...],
        metrics: JobMetrics,
        read_image: ReadFile,
        prepare: Prepare = prepare_apart,
    ) -> None:
        """model, encoder: None of a model that is not trained. read_image: of a client's files, which rows may name."""
        self._config, self._state, self._trainer, self._model = config, state, trainer, model
        self._encoder, self._adapters, self._names, self._metrics = encoder, adapters, names, metrics
        self._read_image, self._prepare = read_image, prepare
        self._records, self._folder = state.jobs, state.directory.path / "jobs"
        self._checks = FileChecks()
        self._queue = JobQueue(config.engine.max_train_jobs, self._told)
        self._runs: dict[str, tuple[JobRun, asyncio.Task[None]]] = {}
        self._place: Workplace | None = None
        self._owner, self._room, self._memory = "", AdapterRoom(), 0  # known once the engine is ready

    async def open(self, ready: Ready) -> None:
        """Goes on with what was going on when the server ended."""
        model, encoder = self._model, self._encoder
        if model is None or encoder is None:
            return
        self._room, self._memory = ready.memory.adapters, ready.memory["training"]
        self._owner = await asyncio.to_thread(self._state.directory.owner)
        shape = await asyncio.to_thread(lambda: BaseModel(model, AdapterLimits(self._room.rank)).shape_digest)

        def source(options: JobOptions) -> Source:
            return Source(
                encoder,
                options.data,
                version=shape,
                max_image_tokens=ready.max_image_tokens or None,
                media=self._config.media,
                config=self._config.engine,
                files=self._read_image,
            )

        self._place = Workplace(
            tenant=TENANT,
            state=self._state,
            model=model,
            names=self._names,
            trainer=self._trainer,
            publisher=_Publisher(self._adapters),
            source=source,
            prepare=self._prepare,
            micro_batch_tokens=MICRO_BATCH["cpu" if ready.device.startswith("cpu") else "cuda"],
            folder=self._folder,
            turn=self._queue.turn,
            metrics=self._metrics,
            most_seconds=self._config.max_job_seconds or math.inf,
        )
        self._metrics.watch(self._counts)
        for _, job in await asyncio.to_thread(self._records.unfinished, self._owner):
            self._begin(job)

    async def close(self) -> None:
        """What is going on goes on when the server is started again."""
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ----------------------------------------------------------------------------------------------- what is asked

    async def create(self, asked: Mapping[str, Any], key: str | None) -> Job:
        """asked: a checked body. Raises NotFound for a model, BadRequest for a file, an option, or what the server
        cannot train."""
        place = self._open_place()
        if not self._memory:
            raise BadRequest("this server has no memory for training (--train-memory)")
        if not self._room.slots:
            raise BadRequest(
                "this server has no slots for adapters, so that what is trained would not be served (--max-loras)"
            )
        start = await asyncio.to_thread(self._start, place, asked)
        options = read_options(asked["opsin"])
        if asked["integrations"]:
            check_installed()
        await asyncio.to_thread(self._check_options, options, place, asked)
        train = await self._file(asked["training_file"], "training_file")
        valid = (
            None if asked["validation_file"] is None else await self._file(asked["validation_file"], "validation_file")
        )
        request = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        seed = secrets.randbelow(LARGEST_SEED) if asked["seed"] is None else asked["seed"]
        known = {
            **asked,
            "seed": seed,
            "start": start,
            "training_digest": train.digest,
            "validation_digest": None if valid is None else valid.digest,
        }
        events = [NewEvent(f"Validating training file: {train.id}")]
        if valid is not None:
            events[0] = NewEvent(f"Validating training file: {train.id} and validation file: {valid.id}")
        digests = [train.digest] if valid is None else [train.digest, valid.digest]
        if start is not None:
            digests += [start["config"], start["weights"]]
            events.append(NewEvent(f"Training goes on from {start['model']}"))
        new = NewJob(self._owner, known, request, key, tuple(digests), tuple(events))
        job, is_new = await asyncio.to_thread(self._records.create, TENANT, new)
        if is_new:
            self._begin(job)
        return job

    async def get(self, job_id: str) -> Job:
        return await asyncio.to_thread(self._records.get, TENANT, job_id)

    async def page(self, after: str | None, limit: int, metadata: Mapping[str, str] | None) -> Page[Job]:
        return await asyncio.to_thread(lambda: self._records.page(TENANT, after=after, limit=limit, metadata=metadata))

    async def events(self, job_id: str, after: str | None, limit: int) -> Page[JobEvent]:
        return await asyncio.to_thread(lambda: self._records.events(TENANT, job_id, after=after, limit=limit))

    async def follow(self, job_id: str) -> AsyncIterator[JobEvent]:
        """All events, the oldest first, and those to come until the job has ended."""
        last = 0
        while True:
            job = await self.get(job_id)  # before its events: none is missed that came with the end
            found = await asyncio.to_thread(self._records.events_since, TENANT, job_id, last)
            for _, event in found:
                yield event
            last = found[-1][0] if found else last
            if job.status in ENDED:
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    async def file_of(self, file_id: str | None) -> list[StoredFile]:
        """None, where there is no such file any more."""
        try:
            return [] if file_id is None else [await asyncio.to_thread(self._state.stored_files.get, TENANT, file_id)]
        except NotFound:
            return []

    async def checkpoints(self, job_id: str, after: str | None, limit: int) -> Page[JobCheckpoint]:
        return await asyncio.to_thread(lambda: self._records.checkpoints(TENANT, job_id, after=after, limit=limit))

    async def check_file(self, file_id: str, given: Mapping[str, Any], lines: int, rows: int) -> FileCheck:
        """given: options of a job that would be trained on it. Raises NotFound, BadRequest."""
        place, options = self._open_place(), read_options(given)
        file = await asyncio.to_thread(self._state.stored_files.get, TENANT, file_id)
        _check_purpose(file, "file")
        return await self._checks.check(place, (file.id, file.digest), options, lines, rows)

    async def cancel(self, job_id: str) -> Job:
        return await self._stopped(job_id, "cancelled", "The job was cancelled")

    async def pause(self, job_id: str) -> Job:
        return await self._stopped(job_id, "paused", "The job was paused; resume goes on from its last step")

    async def resume(self, job_id: str) -> Job:
        self._open_place()
        if (await self.get(job_id)).status == "paused" and (running := self._runs.get(job_id)) is not None:
            await asyncio.wait({running[1]})  # it still makes its last step
        job = await asyncio.to_thread(
            self._records.move, TENANT, job_id, "validating_files", [NewEvent("The job is resumed")]
        )
        self._begin(job)
        return job

    async def _stopped(self, job_id: str, status: JobStatus, message: str) -> Job:
        """At once for all who ask; what runs ends after its step."""
        job = await asyncio.to_thread(self._records.move, TENANT, job_id, status, [NewEvent(message)])
        if status == "cancelled":
            self._metrics.ended(status)
        if (running := self._runs.get(job_id)) is not None:
            running[0].stop(status)
            self._queue.leave(job_id)
        return job

    # --------------------------------------------------------------------------------------------------- helpers

    def _counts(self) -> dict[str, int]:
        running, queued = self._queue.counts
        return {"validating_files": len(self._runs) - running - queued, "queued": queued, "running": running}

    def _open_place(self) -> Workplace:
        if self._model is None:
            raise BadRequest("this model makes embeddings alone: it is not trained here", param="model")
        if self._place is None:
            raise Unavailable("The model is loading")
        return self._place

    def _start(self, place: Workplace, asked: Mapping[str, Any]) -> dict[str, str] | None:
        """What the job trains on from: of an adapter the version that its name means now. None: the base."""
        version = self._adapters.catalogue.find(asked["model"])
        if version is None:
            return None
        self._adapters.catalogue.check_fits(version)
        check_options(asked["opsin"], asked["model"])
        start = described_start(asked["model"], version.facts.source)
        read_start(start, place.state, place.tenant, place.model)
        return start

    def _check_options(self, options: JobOptions, place: Workplace, asked: Mapping[str, Any]) -> None:
        try:
            chosen_modules(options.what, place.model)
        except ConfigError as error:
            raise refused_option(error) from None
        self._check_publish_as(options.publish_as)
        length, most = options.data.max_seq_length, place.model.spec.max_positions
        if length is not None and length > most:
            raise BadRequest(
                f"opsin.max_seq_length is {length:,}, and the model takes {most:,} tokens", param="opsin.max_seq_length"
            )
        if asked["validation_file"] is None:
            if options.promote == "if_better":
                raise BadRequest("opsin.promote is 'if_better', which needs a validation_file", param="opsin.promote")
            for name in ("eval_steps", "early_stopping_patience"):
                if getattr(options.training, name) is not None:
                    raise BadRequest(f"opsin.{name} needs a validation_file", param=f"opsin.{name}")
        if options.training.rank > self._room.rank:
            raise BadRequest(
                f"opsin.lora_rank is {options.training.rank}, and this server serves up to {self._room.rank} "
                "(--max-lora-rank)",
                param="opsin.lora_rank",
            )
        if options.what.finetune_projector == "full" and not self._room.projectors:
            raise BadRequest(
                "opsin.finetune_projector is 'full', and this server's slots have no room for projectors "
                "(--lora-projectors)",
                param="opsin.finetune_projector",
            )

    def _check_publish_as(self, name: str | None) -> None:
        """Raises BadRequest for what neither is an alias nor may become an adapter."""
        if name is None or name in self._adapters.catalogue.snapshot.aliases:
            return
        try:
            check_name(name)
            self._adapters.catalogue.check_free(name, alias=False)
        except BadRequest as error:
            raise BadRequest(f"opsin.publish_as: {error.message}", param="opsin.publish_as") from None

    async def _file(self, file_id: str, param: str) -> StoredFile:
        try:
            file = await asyncio.to_thread(self._state.stored_files.get, TENANT, file_id)
        except NotFound as error:
            raise BadRequest(f"invalid {param}: {file_id[:100]}", param=param, code="invalid_file") from error
        _check_purpose(file, param)
        return file

    def _begin(self, job: Job) -> None:
        run = JobRun(job, self._open_place())
        task = asyncio.create_task(run.run())
        self._runs[job.id] = (run, task)

        def ended(_: object) -> None:
            if self._runs.get(job.id, (None,))[0] is run:
                del self._runs[job.id]

        task.add_done_callback(ended)

    async def _told(self, job_id: str, place: int) -> None:
        event = NewEvent(f"The job is number {place} in the queue", data={"place": place})
        try:
            await asyncio.to_thread(self._records.note, TENANT, job_id, [event])
        except OpsinError:
            log.warning("the place of %s in the queue could not be noted", job_id)


def _check_purpose(file: StoredFile, param: str) -> None:
    if file.purpose != "fine-tune":
        raise BadRequest(
            f"{param} {file.id} has the purpose '{file.purpose}': upload it with 'fine-tune'",
            param=param,
            code="invalid_file",
        )


class _Publisher:
    def __init__(self, adapters: AdapterService) -> None:
        self._adapters = adapters

    async def publish(self, name: str, directory: Path, origin: str, *, promote: bool = True) -> None:
        await self._adapters.load(name, directory, ImportOptions(promote=promote, origin=origin))

    def origin_of(self, name: str) -> str | None:
        try:
            version = self._adapters.catalogue.find(name)
        except NotFound:
            return None
        return None if version is None else version.facts.origin

    def is_alias(self, name: str) -> bool:
        return name in self._adapters.catalogue.snapshot.aliases

    async def set_alias(self, alias: str, name: str) -> None:
        await self._adapters.set_alias(alias, name)

    async def withdraw(self, name: str) -> None:
        try:
            await self._adapters.unload(name)
        except (NotFound, BadRequest) as error:  # somebody has deleted it, or an alias names it
            log.info("the checkpoint %s stays: %s", name, error.message)
