"""One life of the engine process, from its start to its end and the reason for it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
import zmq.asyncio

from opsin_server.config import EngineConfig
from opsin_server.ipc.messages import (
    Failed,
    Frame,
    FromEngine,
    ToEngine,
    Unreadable,
    config_line,
    pack,
    unpack_from_engine,
)
from opsin_server.ipc.private_folder import bind_privately

WORKER = ("-m", "opsin_server.engine.worker")  # what Python runs, with the door's address behind it
LAST_PRINT_SECONDS = 0.5
LAST_MESSAGE_SECONDS = 0.05
LAST_LOOKS = 60  # of so many seconds each: a machine that stands still in between takes none of the others
MESSAGES_AT_ONCE = 16

Hear = Callable[[FromEngine, Sequence[bytes]], None]
"""Takes a message of the engine and its raw frames. Raises Unreadable for one that it does not expect."""


class EngineProcess:
    """`start`, then `ended`, and `close` in any case: after that neither the process nor its socket is left."""

    def __init__(self, config: EngineConfig, context: zmq.asyncio.Context, hear: Hear) -> None:
        self._config, self._hear = config, hear
        self._socket = context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._said: str | None = None  # the first Failed

    @property
    def pid(self) -> int | None:
        """None before it has started and after it has ended."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Returns when the process runs. Raises OSError, or ConfigError where no folder takes the socket."""
        self._folder, address = bind_privately(self._socket)
        self._process = await _spawn(address, self._config)

    async def ended(self) -> str:
        """Waits for its end; meanwhile hears what it says, and prints what it prints. Returns why it ended. One that
        cannot be understood any more has ended as well, whatever it does."""
        assert self._process is not None
        exited = asyncio.create_task(self._process.wait())
        listener = asyncio.create_task(self._listen())
        printer = asyncio.create_task(_print_on(self._process))
        try:
            await asyncio.wait({exited, listener}, return_when=asyncio.FIRST_COMPLETED)
            if listener.done():
                return f"the engine's messages cannot be read: {listener.result()}"
            await asyncio.wait({printer}, timeout=LAST_PRINT_SECONDS)  # (a child of its may hold the stream open)
            # Its last message may still be on the way; one that left with an error says why.
            for _ in range(LAST_LOOKS if exited.result() > 0 else 1):
                if not self._said:
                    await asyncio.wait({listener}, timeout=LAST_MESSAGE_SECONDS)
        finally:
            for task in (exited, listener, printer):
                task.cancel()
            await asyncio.wait({exited, listener, printer})
        return self._said or f"the engine process ended with {_ending(exited.result())}"

    def send(self, message: ToEngine, frames: Sequence[Frame] = ()) -> None:
        """Goes out at once, or as soon as the engine can take it; `max_queue` bounds what can be waiting. Nobody awaits
        the future: when the engine dies the socket is closed, and its requests hear of that elsewhere."""
        sent = asyncio.ensure_future(self._socket.send_multipart(pack(message, frames), copy=not frames))
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def close(self) -> None:
        """Ends the process if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _listen(self) -> Unreadable:
        """Until something comes that is no message."""
        for number in itertools.count():
            if number % MESSAGES_AT_ONCE == 0:
                await asyncio.sleep(0)  # (what has arrived is read without a pause: nothing else would run)
            parts = await self._socket.recv_multipart()
            try:
                message, frames = unpack_from_engine(parts)
                if isinstance(message, Failed):
                    self._said = self._said or message.message
                else:
                    self._hear(message, frames)
            except Unreadable as error:
                return error
        raise AssertionError("never")


async def _spawn(address: str, config: EngineConfig) -> asyncio.subprocess.Process:
    """The engine's process, its configuration written and its standard input open. What it prints comes through a pipe
    to this process, so that a terminal, a log or a reader that fails is this process's care alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *WORKER,
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
