"""The API process's side of the door: starts the engine process, watches it, starts it again when it dies, and gives
each request a stream of its outputs. A request never waits in silence: when the engine dies its stream raises."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Literal

import zmq
import zmq.asyncio

from opsin_server.config import EngineConfig
from opsin_server.errors import ConfigError, EngineFailed, Unavailable
from opsin_server.ipc.messages import (
    Arrays,
    Cancel,
    Estimate,
    Failed,
    Output,
    Outputs,
    Progress,
    Ready,
    Stats,
    Stop,
    Submit,
    ToEngine,
    config_line,
    pack,
    unpack_from_engine,
)
from opsin_server.ipc.private_folder import bind_privately

log = logging.getLogger("opsin.ipc")

State = Literal["starting", "ready", "restarting", "failed", "stopped"]
MAX_RESTARTS = 5  # deaths in a row, without one finished request or STEADY_SECONDS of being ready between them
STEADY_SECONDS = 300.0
STOP_SECONDS = 5.0
LAST_WORDS_SECONDS = 0.5


class Stream:
    """The outputs of one request, in order. Ends after one whose finish is set; raises EngineFailed when the engine
    could not compute the request, or died."""

    def __init__(self, request_id: str, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._waiting: list[Output] = []
        self._arrived = asyncio.Event()
        self._error: str | None = None
        self._over = False

    def push(self, output: Output) -> None:
        self._waiting.append(output)
        self._arrived.set()

    def fail(self, message: str) -> None:
        self._error = message
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while not self._over:
            await self._arrived.wait()
            self._arrived.clear()
            if self._waiting:
                output = merge(self._waiting)
                self._waiting = []
                if output.finish == "error":
                    self._over = True
                    raise EngineFailed(output.error or "the engine could not compute this request")
                self._over = output.finish is not None
                yield output
            if self._error is not None and not self._over:
                self._over = True
                raise EngineFailed(self._error)

    def cancel(self) -> None:
        """Tells the engine that nobody reads on. Does nothing after the end, or twice."""
        if not self._over:
            self._over = True
            self._arrived.set()
            self._cancel(self.request_id)


def merge(outputs: list[Output]) -> Output:
    """What a slow reader missed, as one output."""
    if len(outputs) == 1:
        return outputs[0]
    first, last = outputs[0], outputs[-1]
    return Output(
        first.request_id,
        tuple(i for o in outputs for i in o.ids),
        tuple(p for o in outputs for p in o.logprobs),
        last.finish,
        last.error,
        max(o.cached_tokens for o in outputs),
        max(o.queue_seconds for o in outputs),
    )


class EngineClient:
    def __init__(
        self, config: EngineConfig, on_progress: Callable[[Estimate | Progress], None] = lambda progress: None
    ) -> None:
        self.config, self._on_progress = config, on_progress
        self.state: State = "starting"
        self.ready: Ready | None = None
        self.stats = Stats()
        self.failure: str | None = None
        self.heard = time.monotonic()
        self.restarts = 0
        self._streams: dict[str, Stream] = {}
        self._changed, self._spawned = asyncio.Event(), asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._context = zmq.asyncio.Context()
        self._deaths = 0
        self._ready_since = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

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
        """Raises Unavailable when the engine is not ready."""
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        stream = Stream(message.request_id, self._cancel)
        self._streams[message.request_id] = stream
        self._send(message, arrays)
        return stream

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    async def stop(self) -> None:
        """Ends the engine process; after this no child is left."""
        listens = self.state == "ready"
        self._set("stopped")
        if self._supervisor is not None:
            if listens:
                self._send(Stop())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._supervisor), STOP_SECONDS)
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------------------------ supervision

    async def _supervise(self) -> None:
        while True:
            try:
                reason = await self._run_once()
            except Exception as error:  # nothing may end this task: the server would wait for the engine for ever
                reason = f"the engine process cannot be run: {error}"
                if not isinstance(error, OSError | ConfigError):
                    log.exception("the engine's supervisor failed")
                self._spawned.set()
            for stream in self._streams.values():
                stream.fail("the engine stopped while it worked on this request")
            self._streams.clear()
            self.stats = Stats()
            if self.state == "stopped":
                return
            if self.state == "ready" and time.monotonic() - self._ready_since > STEADY_SECONDS:
                self._deaths = 0
            self._deaths += 1
            if self.ready is None or self._deaths > MAX_RESTARTS:
                self.failure = reason
                if self.ready is not None:
                    log.error("%s; it is not started again", reason)
                self._set("failed")
                return
            self.restarts += 1
            log.warning("%s; starting it again (%d of %d in a row)", reason, self._deaths, MAX_RESTARTS)
            self._set("restarting")
            await asyncio.sleep(min(10.0, 0.1 * 2**self._deaths) if self._deaths > 1 else 0)

    async def _run_once(self) -> str:
        """One life of the engine process. Returns why it ended."""
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        folder = None
        try:
            folder, address = bind_privately(self._socket)
            self._process = process = await _spawn(address, self.config)
            self._spawned.set()
            said: list[str] = []
            ended = asyncio.create_task(process.wait())
            listener = asyncio.create_task(self._listen(said))
            printer = asyncio.create_task(_print_on(process))
            try:
                await asyncio.wait({ended, listener}, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    raise RuntimeError("the engine's messages cannot be read") from listener.exception()
                await asyncio.wait({printer}, timeout=LAST_WORDS_SECONDS)  # (a child of its may hold the stream open)
                await asyncio.sleep(0.05)  # its last message may still be on the way
            finally:
                for task in (ended, listener, printer):
                    task.cancel()
                await asyncio.wait({ended, listener, printer})
            return said[0] if said else f"the engine process ended with {_ending(ended.result())}"
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._socket.close()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    async def _listen(self, said: list[str]) -> None:
        assert self._socket is not None
        while True:
            message = unpack_from_engine(await self._socket.recv())
            self.heard = time.monotonic()
            if isinstance(message, Outputs):
                self.stats = message.stats
                for output in message.outputs:
                    self._deliver(output)
            elif isinstance(message, Estimate | Progress):
                self._tell(message)
            elif isinstance(message, Failed):
                said.append(message.message)
            else:
                self.ready, self._ready_since = message, time.monotonic()
                self._set("ready")

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
            self._deaths = 0
            del self._streams[output.request_id]
        stream.push(output)

    def _cancel(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None and self.state == "ready":
            self._send(Cancel((request_id,)))

    def _send(self, message: ToEngine, arrays: Arrays | None = None) -> None:
        """Goes out at once, or as soon as the engine can take it; `max_queue` bounds what can be waiting. Nobody awaits
        the future: when the engine dies the socket is closed, and its requests hear of that elsewhere."""
        assert self._socket is not None
        sent = asyncio.ensure_future(self._socket.send_multipart(pack(message, arrays), copy=arrays is None))
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())

    def _set(self, state: State) -> None:
        self.state = state
        self._changed.set()


async def _spawn(address: str, config: EngineConfig) -> asyncio.subprocess.Process:
    """The engine's process, its configuration written and its standard input open. What it prints comes through a pipe
    to this process, so that a terminal, a log or a reader that fails is this process's care alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "opsin_server.engine.worker",
        address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=engine_environment(config),
        start_new_session=True,  # what happens to the terminal is this process's to hear, from its first moment on
    )
    assert process.stdin is not None
    process.stdin.write(config_line(config))
    return process


async def _print_on(process: asyncio.subprocess.Process) -> None:
    """What the process prints, to standard error."""
    assert process.stdout is not None
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
    while data := await process.stdout.read(2**16):
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(decode(data))
            sys.stderr.flush()


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "signal 9 (is there enough memory?)"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """What must be set before torch is imported. Waiting threads sleep: with a busy neighbour, spinning ones turn 18 µs
    a parallel region into 8 ms."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
