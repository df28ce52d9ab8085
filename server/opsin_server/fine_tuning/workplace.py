"""What all jobs of a server share: where things are kept, who trains, and who serves what was trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsin_plugins.loading.open_model import OpenModel
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.job_queue import Order
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.job_metrics import JobMetrics
from opsin_server.jobs.prepare import Source
from opsin_server.jobs.prepared import Prepared
from opsin_server.storage.state import State

Prepare = Callable[[Path, Source, Path, Callable[[int], None]], Prepared]
"""`jobs.prepare.prepare`, or what does the same elsewhere."""


class Publisher(Protocol):
    """Serves adapters."""

    async def publish(self, name: str, directory: Path, origin: str, *, promote: bool = True) -> None: ...

    def origin_of(self, name: str) -> str | None:
        """Where what a name means comes from: a job's id, or something else; None: it means nothing, or the base."""

    def is_alias(self, name: str) -> bool: ...

    async def set_alias(self, alias: str, name: str) -> None: ...

    async def withdraw(self, name: str) -> None: ...


class Trainer(Protocol):
    def train(self, run: TrainingRun, resume: bool = False) -> None: ...


@dataclass(frozen=True)
class Workplace:
    """What all jobs of a server share. names: what the model is called. source: what files are prepared with; a job's
    own options replace its. prepare: who does it. turn: waited for before a job trains; it is told the place in the
    queue. most_seconds: that a job may train."""

    tenant: str
    state: State
    model: OpenModel
    names: tuple[str, ...]
    trainer: Trainer
    publisher: Publisher
    source: Callable[[JobOptions], Source]
    prepare: Prepare
    micro_batch_tokens: int
    folder: Path
    turn: Callable[[str, Order], AbstractAsyncContextManager[None]]
    metrics: JobMetrics
    most_seconds: float
