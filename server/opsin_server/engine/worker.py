"""The engine process: an engine, training, and their door. Started by ipc/client.py, which writes the configuration to
standard input and keeps that pipe open: when the API process dies, however it dies, the pipe ends and this process
leaves."""

from __future__ import annotations

import gc
import signal

# A signal to the whole group (systemd, a container's end) is for the API process, which drains. Before the imports
# below: they take seconds.
for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(_number, signal.SIG_IGN)

gc.disable()  # what is imported stays: to look through it again and again is a seventh of the time [measured]

import logging  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

# isort: off
import opsin_kernels.dispatch  # noqa: E402, F401  (before torch, which may import Triton)
import torch  # noqa: E402

# isort: on
from msgspec.structs import replace  # noqa: E402

from opsin_plugins.spec import SpecError  # noqa: E402
from opsin_server.engine.embedding_engine import EmbeddingEngine  # noqa: E402
from opsin_server.engine.engine import Engine, EngineBroken  # noqa: E402
from opsin_server.engine.startup.load import load_engine  # noqa: E402
from opsin_server.engine.training.jobs import TrainingJobs  # noqa: E402
from opsin_server.engine.training.pieces import Piece  # noqa: E402
from opsin_server.engine.training.time_share import TimeShare  # noqa: E402
from opsin_server.errors import ConfigError  # noqa: E402
from opsin_server.ipc.engine_socket import EngineSocket  # noqa: E402
from opsin_server.ipc.messages import (  # noqa: E402
    Cancel,
    Failed,
    KeepAdapters,
    Output,
    Outputs,
    Progress,
    Stats,
    Stop,
    Submit,
    ToEngine,
    Unreadable,
    Vocabulary,
    read_config_line,
    unpack_to_engine,
)
from opsin_server.ipc.submit_frames import WrongFrames, arrays_from  # noqa: E402
from opsin_server.ipc.training_messages import ToTraining  # noqa: E402
from opsin_server.ipc.vocabulary_frames import tokens_from  # noqa: E402
from opsin_server.served_name import readable  # noqa: E402

gc.freeze()
gc.enable()

log = logging.getLogger("opsin.engine")

HEARTBEAT = 1.0  # seconds between signs of life when idle
PROGRESS = 0.1  # seconds between reports while loading
WAIT = 0.02  # seconds between looks at training that waits for rows or for a disk


def main() -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    address = sys.argv[1]
    config = read_config_line(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_parent, args=(address,), daemon=True).start()
    torch.set_num_threads(config.threads)
    door = EngineSocket(address)
    try:
        loaded = load_engine(config, _Reporter(door), door.send)
    except (ConfigError, SpecError, ValueError, OSError) as error:
        door.send(Failed(readable(str(error))))
        door.close()
        return 1
    engine = loaded.engine
    training = TrainingJobs(loaded.base, door.send, loaded.ready.memory["training"], config.max_train_jobs)
    gap = None if config.itl_slo_ms is None else config.itl_slo_ms / 1000
    door.send(loaded.ready)
    try:
        serve(engine, training, TimeShare(config.train_share_min, gap), door)
    except EngineBroken as error:
        door.send(Failed(readable(str(error))))
        door.close()
        return 1
    training.close()
    engine.close()
    door.close()
    return 0


class _Reporter:
    """Progress of loading, a few times a second."""

    def __init__(self, door: EngineSocket) -> None:
        self.door, self.next = door, 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next or done == total:
            self.next = time.monotonic() + PROGRESS
            self.door.send(Progress(done, total))


def serve(engine: Engine | EmbeddingEngine, training: TrainingJobs, share: TimeShare, door: EngineSocket) -> None:
    """Steps while there is work, trains in between, listens between steps and pieces, and shows that it lives when
    there is neither."""
    said = 0.0
    while True:
        refused: list[Output] = []
        for parts in door.receive(_patience(engine, training), engine.wakers):
            try:
                message, frames = unpack_to_engine(parts)
            except Unreadable as error:
                refused += _unreadable(error)
                continue
            if isinstance(message, Stop):
                return
            refused += _handle(engine, training, message, frames)
        began, busy = time.monotonic(), engine.busy
        outputs = engine.step() if busy else []
        now = time.monotonic()
        if busy or refused or now - said >= HEARTBEAT:
            door.send(Outputs((*refused, *outputs), _stats(engine, share), engine.adapter_report()))
            said = now
        if engine.busy:
            share.answered(time.monotonic() - began)  # with what is sent
            _train_beside(training, share)
        elif (piece := training.next_piece()) is not None:
            _run(training, share, piece)


def _stats(engine: Engine | EmbeddingEngine, share: TimeShare) -> Stats:
    stats = engine.stats()
    if not share.pieces:
        return stats
    return replace(stats, training_seconds=share.seconds, training_pieces=dict(share.pieces))


def _patience(engine: Engine | EmbeddingEngine, training: TrainingJobs) -> float:
    """Seconds to wait for a message."""
    if engine.busy or training.next_piece() is not None:
        return 0
    return WAIT if len(training) else HEARTBEAT


def _train_beside(training: TrainingJobs, share: TimeShare) -> None:
    """Between two steps of answers, as far as there is credit."""
    spent = 0.0
    while (piece := training.next_piece()) is not None and share.may_run(piece, spent):
        spent += _run(training, share, piece)
    if piece is not None and (text := share.shortfall(piece)) is not None:
        log.warning("%s", text)
        training.notice(text)


def _run(training: TrainingJobs, share: TimeShare, piece: Piece) -> float:
    began = time.monotonic()
    training.advance()
    seconds = time.monotonic() - began
    share.ran(piece, seconds)
    return seconds


def _unreadable(error: Unreadable) -> list[Output]:
    """It is nobody's, or one request's: no reason to leave the others."""
    log.error("a message is ignored: %s", error)
    return [] if error.request_id is None else [_refusal(error.request_id, "the engine could not read this request")]


def _handle(
    engine: Engine | EmbeddingEngine, training: TrainingJobs, message: ToEngine, frames: Sequence[bytes]
) -> list[Output]:
    """What is refused at once."""
    if isinstance(message, ToTraining):
        training.take(message, frames)
    if isinstance(message, Submit):
        return _submit(engine, message, frames)
    if isinstance(message, Vocabulary) and isinstance(engine, Engine):
        _learn(engine, message, frames)
    if isinstance(message, KeepAdapters):
        engine.keep_adapters(message.adapters)
    if isinstance(message, Cancel):
        for request_id in message.request_ids:
            engine.cancel(request_id)
    return []


def _submit(engine: Engine | EmbeddingEngine, message: Submit, frames: Sequence[bytes]) -> list[Output]:
    """Whatever is wrong with a request ends that one. (It is refused whole: the engine keeps nothing of it.)"""
    try:
        engine.submit(message, arrays_from(message, frames))
    except (SpecError, WrongFrames) as error:
        log.warning("request %s is refused: %s", message.request_id, error)
        return [_refusal(message.request_id, str(error))]
    except Exception:
        log.exception("request %s could not be taken", message.request_id)
        return [_refusal(message.request_id, "the engine could not take this request")]
    return []


def _learn(engine: Engine, message: Vocabulary, frames: Sequence[bytes]) -> None:
    """Without one, requests that want a grammar are refused."""
    try:
        engine.grammars.learn(tokens_from(frames), message.special, message.ends)
    except Exception:
        log.exception("the vocabulary could not be taken: answers cannot be held to grammars")


def _refusal(request_id: str, why: str) -> Output:
    return Output(request_id, finish="error", error=why)


def _leave_with_parent(address: str) -> None:
    while os.read(0, 4096):
        pass
    shutil.rmtree(Path(address.removeprefix("ipc://")).parent, ignore_errors=True)  # its owner could not
    os._exit(1)  # not sys.exit: the step that runs may be long, and nobody is left to hear of it


def leave(code: int) -> None:
    """Ends the process at once: Python would take apart what was imported, which is 0.6 s of work [measured]."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
