"""The batches of a running server: what is asked of them, and who runs them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

import msgspec

from opsin_server.api.adapter_service import AdapterService
from opsin_server.api.middleware import error_responses
from opsin_server.batch_metrics import BatchMetrics
from opsin_server.batches.answers import Answer, Answerer
from opsin_server.batches.batch_run import BatchRun
from opsin_server.batches.window import AHEAD, Window
from opsin_server.config import ServerConfig
from opsin_server.errors import BadRequest, EngineFailed, NotFound, Unavailable
from opsin_server.ipc.messages import Ready
from opsin_server.storage.file_records import new_id
from opsin_server.storage.records import TENANT, Batch, NewBatch, Page, StoredFile
from opsin_server.storage.state import State

log = logging.getLogger("opsin.batches")

WINDOW_SECONDS = 24 * 3600.0  # "24h", the only completion window that there is
PURPOSE = "batch"


class BatchService:
    """Made before the engine is ready; `open` when it is."""

    def __init__(self, config: ServerConfig, state: State, adapters: AdapterService, metrics: BatchMetrics) -> None:
        self._config, self._state, self._adapters, self._metrics = config, state, adapters, metrics
        self._records = state.batches
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._window: Window | None = None
        self._owner = ""  # known once the engine is ready

    async def open(self, ready: Ready, run: Answerer) -> None:
        """Goes on with what was going on when the server ended. run: a line's request."""
        self._owner = await asyncio.to_thread(self._state.directory.owner)
        self._window = Window(run, _failure, ready.max_sequences + AHEAD, self._metrics)
        self._metrics.watch(lambda: Counter(run.batch.status for run in self._runs.values()))
        for batch in await asyncio.to_thread(self._records.unfinished, self._owner):
            self._begin(batch, self._window)

    async def close(self) -> None:
        """What is going on goes on when the server is started again."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._window is not None:
            await self._window.close()

    # ----------------------------------------------------------------------------------------------- what is asked

    async def create(
        self, endpoint: str, input_file: str, metadata: Mapping[str, str], output_lasts: int | None
    ) -> Batch:
        """Raises BadRequest for a file that is not there, or is no input."""
        if self._window is None:
            raise Unavailable("The model is loading")
        batch = await asyncio.to_thread(self._created, endpoint, input_file, metadata, output_lasts)
        self._begin(batch, self._window)
        return batch

    async def get(self, batch_id: str) -> Batch:
        return await asyncio.to_thread(self._records.get, TENANT, batch_id)

    async def page(self, after: str | None, limit: int) -> Page[Batch]:
        return await asyncio.to_thread(lambda: self._records.page(TENANT, after=after, limit=limit))

    async def cancel(self, batch_id: str) -> Batch:
        """Its lines in flight are dropped, and what was answered is kept."""
        batch = await self.get(batch_id)
        if batch.status != "cancelling":
            batch = await asyncio.to_thread(self._records.move, batch, "cancelling")
        if (run := self._runs.get(batch_id)) is not None:
            run.changed(batch)
        return batch

    # --------------------------------------------------------------------------------------------------- helpers

    def _created(self, endpoint: str, file_id: str, metadata: Mapping[str, str], output_lasts: int | None) -> Batch:
        try:
            file = self._checked(self._state.stored_files.get(TENANT, file_id))
            new = NewBatch(self._owner, endpoint, file.id, file.digest, metadata, output_lasts, WINDOW_SECONDS)
            return self._records.create(TENANT, new)
        except NotFound:
            message = f"invalid input_file_id: {file_id[:100]}"
            raise BadRequest(message, param="input_file_id", code="invalid_file") from None

    def _checked(self, file: StoredFile) -> StoredFile:
        if file.purpose != PURPOSE:
            raise BadRequest(
                f"input_file_id {file.id} has the purpose '{file.purpose}': upload it with '{PURPOSE}'",
                param="input_file_id",
                code="invalid_file",
            )
        return file

    def _begin(self, batch: Batch, window: Window) -> None:
        run = BatchRun(batch, self._state, window, self._metrics, self._config.max_body_bytes, self._adapters.resolve)
        self._runs[batch.id] = run
        task = asyncio.create_task(run.run())
        self._tasks.add(task)

        def ended(_: object) -> None:
            self._tasks.discard(task)
            del self._runs[batch.id]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s stopped", batch.id, exc_info=error)

        task.add_done_callback(ended)


def _failure(error: EngineFailed) -> Answer:
    """What is written of a line that the engine cannot compute."""
    return Answer(error.status, new_id("req_"), msgspec.json.encode(error_responses.body(error)))
