"""The API process's side of the door: keeps an engine process alive, and gives each request a stream of its outputs. A
request never waits in silence: when the engine dies its stream raises."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import zmq.asyncio

from opsin_server.config import EngineConfig
from opsin_server.errors import ConfigError, Unavailable
from opsin_server.ipc.engine_process import EngineProcess
from opsin_server.ipc.memory_messages import Estimate
from opsin_server.ipc.messages import (
    AdapterRef,
    AdapterReport,
    Arrays,
    Cancel,
    Frame,
    FromEngine,
    KeepAdapters,
    Output,
    Outputs,
    Progress,
    Ready,
    Stats,
    Stop,
    Submit,
    Unreadable,
    Vocabulary,
    choice_ids,
)
from opsin_server.ipc.restart_policy import RestartPolicy
from opsin_server.ipc.stream import Stream
from opsin_server.ipc.submit_frames import frames_of
from opsin_server.ipc.training_messages import FromTraining, ToTraining
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.vocabulary_frames import vocabulary_frames

log = logging.getLogger("opsin.ipc")

State = Literal["starting", "ready", "restarting", "failed", "stopped"]
STOP_SECONDS = 5.0


class EngineClient:
    """name: which engine it is, where several are looked at together, as in metrics. policy: how often and when the
    process is started again."""

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[Estimate | Progress], None] = lambda progress: None,
        name: str = "0",
        policy: RestartPolicy | None = None,
    ) -> None:
        self.config, self.name, self._on_progress = config, name, on_progress
        self.state: State = "starting"
        self.ready: Ready | None = None
        self.stats = Stats()
        self.adapters = AdapterReport()
        self.on_adapters: Callable[[AdapterReport], None] = lambda report: None
        self._kept: tuple[AdapterRef, ...] = ()
        self._vocabulary: tuple[Vocabulary, list[Frame]] | None = None
        self.failure: str | None = None
        self.heard = time.monotonic()
        self.restarts = 0
        self._streams: dict[str, Stream] = {}
        self._runs: dict[str, TrainingRun] = {}
        self._changed, self._spawned = asyncio.Event(), asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._process: EngineProcess | None = None
        self._context = zmq.asyncio.Context()
        self._policy = policy or RestartPolicy()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def engines(self) -> Mapping[str, EngineClient]:
        """The engine processes behind this, by name: it alone."""
        return {self.name: self}

    async def start(self) -> None:
        """Returns when the engine process runs; `wait_ready` waits until it has loaded."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        await self._spawned.wait()

    async def wait_ready(self) -> Ready:
        """Raises ConfigError with the engine's own sentence when it cannot start."""
        while self.state not in ("ready", "failed", "stopped"):
            self._changed.clear()
            await self._changed.wait()
        if self.ready is None or self.state != "ready":
            raise ConfigError(self.failure or "the engine was stopped")
        return self.ready

    def submit(self, message: Submit, arrays: Arrays) -> Stream:
        """The outputs of a message with one choice. Raises what `submit_choices` does."""
        return self.submit_choices(message, arrays)[0]

    def submit_choices(self, message: Submit, arrays: Arrays) -> list[Stream]:
        """The outputs of each choice. Raises Unavailable when the engine is not ready, and ValueError for what it would
        refuse: an id that is in use, arrays that are not what the message says (WrongFrames)."""
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        assert self._process is not None
        ids = choice_ids(message.request_id, message.choices)
        if not self._streams.keys().isdisjoint(ids):
            raise ValueError(f"request {message.request_id} is already open")
        frames = frames_of(message, arrays)
        self._process.send(message, frames)  # (first: what cannot be packed raises, and nothing of it is kept)
        streams = [Stream(name, self._cancel) for name in ids]
        self._streams |= zip(ids, streams, strict=True)
        return streams

    def keep_adapters(self, refs: Sequence[AdapterRef]) -> None:
        """These stay on the device, and are there again when the engine was started again."""
        self._kept = tuple(refs)
        if self.state == "ready":
            assert self._process is not None
            self._process.send(KeepAdapters(self._kept))

    def teach(self, vocabulary: Vocabulary, tokens: Sequence[bytes]) -> None:
        """What tokens say, for guided decoding; said again when the engine was started again."""
        self._vocabulary = vocabulary, vocabulary_frames(tokens)
        if self.state == "ready":
            self._say_vocabulary()

    def _say_vocabulary(self) -> None:
        if self._vocabulary is not None:
            assert self._process is not None
            self._process.send(*self._vocabulary)

    def train(self, run: TrainingRun, resume: bool = False) -> None:
        """Starts a training run, or goes on with one; it goes on also when the engine was started again, unless it ran
        at the last two of its deaths. Raises Unavailable when the engine is not ready, and ValueError for a run that is
        going on."""
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        if run.job_id in self._runs:
            raise ValueError(f"training run {run.job_id} is going on already")
        self._runs[run.job_id] = run
        run.start(self._send_training, resume)

    def _send_training(self, message: ToTraining, frames: Sequence[Frame]) -> None:
        assert self._process is not None
        self._process.send(message, frames)

    async def stop(self) -> None:
        """Ends the engine process; after this no child is left."""
        listens = self.state == "ready"
        self._set("stopped")
        if self._supervisor is not None:
            if listens and self._process is not None:
                self._process.send(Stop())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._supervisor), STOP_SECONDS)
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------------------------ supervision

    async def _supervise(self) -> None:
        while True:
            reason = await self._run_once()
            for stream in self._streams.values():
                stream.fail("the engine stopped while it worked on this request")
            self._streams.clear()
            self._lose_runs()
            self.stats = Stats()
            self.adapters = AdapterReport()
            if self.state == "stopped":
                return
            pause = self._policy.died(time.monotonic())
            if pause is None:
                self.failure = reason
                if self.ready is not None:
                    log.error("%s; it is not started again", reason)
                self._set("failed")
                for run in self._runs.values():
                    run.fail(reason)
                self._runs.clear()
                return
            self.restarts += 1
            deaths, most = self._policy.deaths, self._policy.max_restarts
            log.warning("%s; starting it again (%d of %d in a row)", reason, deaths, most)
            self._set("restarting")
            await asyncio.sleep(pause)

    async def _run_once(self) -> str:
        """One life of the engine process. Returns why it ended."""
        try:
            self._process = process = EngineProcess(self.config, self._context, self._hear)
            try:
                await process.start()
                self._spawned.set()
                return await process.ended()
            finally:
                await process.close()
        except Exception as error:  # nothing may end the supervisor: the server would wait for the engine for ever
            if not isinstance(error, OSError | ConfigError):
                log.exception("the engine's supervisor failed")
            self._spawned.set()
            return f"the engine process cannot be run: {error}"

    def _hear(self, message: FromEngine, frames: Sequence[bytes]) -> None:
        """frames: none, behind all that is expected."""
        self.heard = time.monotonic()
        if isinstance(message, Outputs):
            self.stats = message.stats
            if message.adapters is not None:
                self._report(message.adapters)
            for output in message.outputs:
                self._deliver(output)
        elif isinstance(message, Estimate | Progress):
            self._tell(message)
        elif isinstance(message, Ready):
            self.ready = message
            self._policy.ready(self.heard)
            self._set("ready")
            self._say_vocabulary()
            if self._kept:
                self.keep_adapters(self._kept)
            for run in self._runs.values():
                run.start(self._send_training, resume=True)
        elif isinstance(message, FromTraining):
            self._hear_training(message)
        else:
            raise Unreadable(f"a {type(message).__name__} came, which is not expected")

    def _hear_training(self, message: FromTraining) -> None:
        run = self._runs.get(message.job_id)
        if run is not None:
            before = run.step
            run.hear(message)
            if run.step > before:
                self._policy.progressed()
            if run.ended is not None:
                del self._runs[run.job_id]

    def _lose_runs(self) -> None:
        """The engine is gone. A run that was going on at two deaths in a row may be why, and is not tried again."""
        for run in list(self._runs.values()):
            run.lost()
            if run.ended is not None:
                del self._runs[run.job_id]

    def _report(self, report: AdapterReport) -> None:
        self.adapters = report
        try:
            self.on_adapters(report)
        except Exception:  # what is counted of adapters is worth no engine
            log.exception("a report of adapters could not be taken")

    def _tell(self, progress: Estimate | Progress) -> None:
        try:
            self._on_progress(progress)
        except Exception:  # a progress bar is worth no engine
            log.debug("progress could not be shown", exc_info=True)

    def _deliver(self, output: Output) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:  # cancelled while the output travelled
            return
        if output.finish is not None:
            self._policy.progressed()
            del self._streams[output.request_id]
        stream.push(output)

    def _cancel(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None and self.state == "ready":
            assert self._process is not None
            self._process.send(Cancel((request_id,)))

    def _set(self, state: State) -> None:
        self.state = state
        self._changed.set()
