"""The jobs of a server without a server: the real service, runs, queue and records over an engine that is none, in an
event loop that is driven by hand. It can be killed, and opened again on what was kept."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_server import lasting
from opsin_server.api.fine_tuning_service import FineTuningService
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.errors import NotFound
from opsin_server.fine_tuning import job_run
from opsin_server.fine_tuning.job_run import JobRun
from opsin_server.ipc.memory_messages import AdapterRoom, MemoryLedger, Reserve
from opsin_server.ipc.messages import Ready
from opsin_server.job_metrics import JobMetrics
from opsin_server.jobs.prepare import Source, prepare
from opsin_server.jobs.prepared import Prepared
from opsin_server.storage.job_records import JobRecords
from opsin_server.storage.records import Job
from opsin_server.storage.state import State
from opsin_server.storage.tables import JobRow
from opsin_server.storage_config import StorageConfig
from opsin_server.text.encode_prompt import PromptEncoder
from support import talk
from support.fake_training import FakeAdapters, FakeTrainingEngine
from support.faults import Faults
from support.stepped_loop import SteppedLoop
from support.stored import TENANT

ROWS = 12
LEDGER = MemoryLedger(2**30, (Reserve("training", 2**28),), 8, 8, 16, AdapterRoom(4, 64))
READY = Ready("cpu", "float32", "plain", 1024, 0, 8, LEDGER)
Moved = Callable[[str, str], None]


def rows(count: int = ROWS) -> bytes:
    turns = [[{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "yes"}] for i in range(count)]
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in turns).encode()


def asked(training_file: str, validation_file: str | None = None, **changes: Any) -> dict[str, Any]:
    """What a request's body becomes."""
    method = {"type": "supervised", "hyperparameters": {"n_epochs": 2, "batch_size": 4}}
    fields = {"suffix": None, "seed": None, "metadata": {}, "method": method, "integrations": []}
    fields["opsin"] = {"save_steps": 1}
    known = {"model": talk.MODEL_NAME, "training_file": training_file, "validation_file": validation_file}
    return known | fields | changes


class _Heard(JobRecords):
    """Tells of every change of a status that lasts, in order."""

    moved: Moved

    def move(self, tenant: str, job_id: str, status: Any, *args: Any, **changes: Any) -> Job:
        job = super().move(tenant, job_id, status, *args, **changes)
        self.moved(job_id, status)
        return job


class JobServer:
    """moved: hears of every change of a status. check: asked before a job is trained."""

    def __init__(
        self, storage: StorageConfig, most: int, now: Callable[[], float], check: Callable[[str], None], moved: Moved
    ) -> None:
        self._storage, self._now, self._moved = storage, now, moved
        self.faults = Faults()
        self.engine = FakeTrainingEngine(check, most)
        self.adapters = FakeAdapters(self._read)
        self.unprepared: set[str] = set()  # jobs that found the disk full as their files were read
        self._config = ServerConfig(EngineConfig(str(talk.MINI), max_train_jobs=most))
        self._patches = ExitStack()
        self._patches.enter_context(patch.object(job_run, "RETRY_SECONDS", 0.0))
        self._patches.enter_context(patch.object(lasting, "RETRY_SECONDS", 0.0))
        self._open()

    def _open(self) -> None:
        model = _model()
        self.state = State.open(self._storage, self._now)
        self.state.jobs = heard = _Heard(self.state.database, self._now)
        heard.moved = self._moved
        self.faults.within(self.state)
        self.loop = SteppedLoop()
        metrics = JobMetrics(CollectorRegistry())
        names = (talk.MODEL_NAME,)
        self.service = FineTuningService(
            self._config, self.state, self.engine, model, _encoder(), self.adapters, names, metrics,  # type: ignore[arg-type]
            lambda file_id: b"", self._prepare,
        )  # fmt: skip
        self.loop.run(self.service.open(READY))

    def _prepare(self, file: Path, source: Source, out: Path, on_row: Callable[[int], None]) -> Prepared:
        try:
            self.faults.disk()
        except OSError:
            self.unprepared.add(out.parent.name)
            raise
        return prepare(file, source, out, on_row)

    def _read(self, path: Path) -> str:
        self.faults.store()
        if not path.exists():
            raise NotFound(f"{path.parent.name} is not there")
        return path.read_text()

    def upload(self, data: bytes) -> str:
        blob = self.state.blobs.put(TENANT, io.BytesIO(data), kind="file", name="train.jsonl", limit=2**20)
        return self.state.stored_files.add(TENANT, blob, "train.jsonl", "fine-tune").id

    @property
    def going(self) -> list[str]:
        """Ids of the jobs whose runs go on, each as often as one does."""
        frames = [task.get_coro().cr_frame for task in self.loop.tasks()]  # type: ignore[union-attr]
        mine = [frame.f_locals["self"] for frame in frames if frame is not None and frame.f_code is JobRun.run.__code__]
        return sorted(run.job.id for run in mine)

    def key_of(self, job_id: str) -> str | None:
        with self.faults.off(), self.state.database.read() as session:
            return session.get_one(JobRow, (TENANT, job_id)).key

    def digest(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def kill(self) -> None:
        """And starts it again."""
        self._end()
        self._open()

    def restart(self) -> None:
        """As a signal ends it."""
        self.loop.run(self.service.close())
        self.kill()

    def close(self) -> None:
        self._patches.close()
        self._end()

    def _end(self) -> None:
        self.loop.kill()
        self.engine.forget()
        self.faults.set(None)
        self.state.close()


_made: list[tuple[OpenModel, PromptEncoder]] = []


def _model() -> OpenModel:
    if not _made:
        model = open_model(talk.MINI)
        _made.append((model, PromptEncoder(model.files, model.architecture, model.spec)))
    return _made[0][0]


def _encoder() -> PromptEncoder:
    return _made[0][1]
