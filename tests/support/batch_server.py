"""The batches of a server without a server: the real service, runs, window and records over an engine that is none, in
an event loop that is driven by hand. It can be killed, and opened again on what was kept."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from opsin_server import lasting
from opsin_server.api.batch_service import BatchService
from opsin_server.batch_metrics import BatchMetrics
from opsin_server.batches import batch_run, window
from opsin_server.batches.answers import Answer
from opsin_server.batches.batch_run import BatchRun
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import EngineFailed, NotFound, Unavailable
from opsin_server.ipc.memory_messages import MemoryLedger
from opsin_server.ipc.messages import Ready
from opsin_server.storage.state import State
from opsin_server.storage.tables import BatchResultRow
from opsin_server.storage_config import StorageConfig
from support.faults import Faults
from support.stepped_loop import SteppedLoop
from support.stored import TENANT

ENDPOINT, MODEL = "/v1/chat/completions", "m"
READY = Ready("cpu", "float32", "plain", 1024, 0, 4, MemoryLedger(2**30, (), 8, 8, 16))
TICKS = 0.003  # seconds, of the loop's own time


def lines(count: int, **odd: str) -> bytes:
    """odd: what becomes of single lines, by "line_NUMBER": refused, or poison, which kills the engine."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"id {n}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {"model": MODEL, "n": n, "is": odd.get(f"line_{n}", "good")},
            }
        ).encode()
        + b"\n"
        for n in range(1, count + 1)
    )


class FakeAnswers:
    """going: what is asked, by its body, until a test has it answered. ran: how often each was answered."""

    def __init__(self) -> None:
        self.ready, self.ran = True, Counter[bytes]()
        self.forget()

    def forget(self) -> None:
        self.going: list[tuple[bytes, asyncio.Future[Answer]]] = []

    async def __call__(self, endpoint: str, body: bytes, started: Callable[[], None]) -> Answer:
        if not self.ready:
            raise Unavailable("the engine is restarting")
        entry = body, asyncio.get_running_loop().create_future()
        self.going.append(entry)
        started()
        try:
            return await entry[1]
        finally:
            if entry in self.going:
                self.going.remove(entry)

    def work(self, number: int) -> None:
        if not self.going:
            return
        body, future = self.going.pop(number % len(self.going))
        asked = json.loads(body)
        if asked["is"] == "poison":
            future.set_exception(EngineFailed("the engine stopped while it worked on this request"))
            self.die()
            self.ready = True
            return
        self.ran[body] += 1
        status = 400 if asked["is"] == "refused" else 200
        future.set_result(Answer(status, f"req_{asked['n']}", json.dumps({"n": asked["n"]}).encode(), 3, 1, 2))

    def die(self) -> None:
        self.ready, going = False, self.going
        self.going = []
        for _, future in going:
            future.set_exception(EngineFailed("the engine stopped while it worked on this request"))


class _Adapters:
    async def resolve(self, model: str) -> None:
        if model != MODEL:
            raise NotFound(f"The model '{model}' does not exist", param="model", code="model_not_found")


class BatchServer:
    def __init__(self, storage: StorageConfig, now: Callable[[], float]) -> None:
        self._storage, self._now = storage, now
        self.faults, self.engine = Faults(), FakeAnswers()
        self._patches = ExitStack()
        for module, name, seconds in (
            (lasting, "RETRY_SECONDS", 0.0), (window, "RETRY_SECONDS", TICKS), (batch_run, "WRITE_SECONDS", TICKS),
            (batch_run, "LOOK_SECONDS", 10 * TICKS),
        ):  # fmt: skip
            self._patches.enter_context(patch.object(module, name, seconds))
        self._open()

    def _open(self) -> None:
        self.state = State.open(self._storage, self._now)
        self.faults.within(self.state)
        self.loop = SteppedLoop()
        self.metrics = BatchMetrics(CollectorRegistry())
        config = ServerConfig(EngineConfig("none"))
        self.service = BatchService(config, self.state, _Adapters(), self.metrics)  # type: ignore[arg-type]
        self.loop.run(self.service.open(READY, self.engine))

    def upload(self, data: bytes) -> str:
        blob = self.state.blobs.put(TENANT, io.BytesIO(data), kind="file", name="in.jsonl", limit=2**24)
        return self.state.stored_files.add(TENANT, blob, "in.jsonl", "batch").id

    def create(self, file_id: str) -> Any:
        return self.service.create(ENDPOINT, file_id, {}, None)

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        with self.faults.off():
            file = self.state.stored_files.get(TENANT, file_id)
            assert file.purpose == "batch_output"
            with self.state.blobs.open(TENANT, file.digest) as opened:
                return [json.loads(line) for line in opened.read().splitlines()]

    def rows(self, batch_id: str) -> dict[int, str]:
        """Results that are kept, by line."""
        with self.faults.off(), self.state.database.read() as session:
            own = session.query(BatchResultRow).filter_by(tenant=TENANT, batch=batch_id)
            return {row.line: row.data for row in own}

    @property
    def going(self) -> list[str]:
        """Ids of the batches whose runs go on, each as often as one does."""
        frames = [task.get_coro().cr_frame for task in self.loop.tasks()]  # type: ignore[union-attr]
        code = BatchRun.run.__code__
        return sorted(frame.f_locals["self"].batch.id for frame in frames if frame is not None and frame.f_code is code)

    def kill(self) -> None:
        """And starts it again."""
        self._end()
        self._open()

    def restart(self) -> None:
        """As a signal ends it."""
        self.loop.run(self.service.close())
        self.kill()

    def close(self) -> None:
        self._end()
        self._patches.close()

    def _end(self) -> None:
        self.loop.kill()
        self.engine.forget()
        self.faults.set(None)
        self.state.close()
