"""The life of one batch, from its input file to the files of its answers. What lasts is in the database, so that a
batch goes on from there when the server is started again: each line's result is a row before it counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from opsin_server.batch_metrics import BatchMetrics
from opsin_server.batches.answers import Answer, LineRequest, result_of
from opsin_server.batches.input_file import Checked, Refused, check, requests
from opsin_server.batches.output_files import error_file, output_file
from opsin_server.batches.window import Window
from opsin_server.errors import BadRequest, NotFound, OpsinError
from opsin_server.lasting import lasting_in_thread
from opsin_server.storage.batch_records import ENDED
from opsin_server.storage.records import Batch, BatchFault, BatchResult, BatchStatus
from opsin_server.storage.state import State

log = logging.getLogger("opsin.batches")

WRITE_SECONDS = 0.2  # between two writes of results, which cost the disk the same for one as for many
MOST_UNWRITTEN = 256  # results in memory; then lines wait
LOOK_SECONDS = 2.0  # between looks at what another server may have changed
SAY_SECONDS = 60.0  # between lines in the log

Result = TypeVar("Result")


class Cancelled(Exception):
    """The batch was cancelled while its file was read."""


class BatchRun:
    """check_model: raises NotFound for a model that is not served."""

    def __init__(
        self,
        batch: Batch,
        state: State,
        window: Window,
        metrics: BatchMetrics,
        max_body_bytes: int,
        check_model: Callable[[str], Awaitable[object]],
    ) -> None:
        self.batch, self._state, self._records, self._window = batch, state, state.batches, window
        self._metrics, self._max_body_bytes, self._check_model = metrics, max_body_bytes, check_model
        self._changed, self._may_keep = asyncio.Event(), asyncio.Semaphore(MOST_UNWRITTEN)
        self._unwritten: list[BatchResult] = []
        self._lines: Iterator[LineRequest] = iter(())
        self._done: set[int] = set()
        self._fault: BatchFault | None = None  # for which it cannot go on
        self._said = time.monotonic()

    # ------------------------------------------------------------------------------------------ as the window sees it

    @property
    def tenant(self) -> str:
        return self.batch.tenant

    @property
    def endpoint(self) -> str:
        return self.batch.endpoint

    async def next(self) -> LineRequest | None:
        try:
            return await asyncio.to_thread(self._next)
        except Exception as error:  # nothing may end the window: other batches have lines in it
            log.exception("%s: its input file cannot be read on", self.batch.id)
            message = error.message if isinstance(error, OpsinError) else "the input file cannot be read on"
            self._fault = BatchFault("server_error", message)
            self._changed.set()
            return None

    def _next(self) -> LineRequest | None:
        return next((request for request in self._lines if request.line not in self._done), None)

    async def answered(self, request: LineRequest, answer: Answer) -> None:
        await self._may_keep.acquire()
        self._unwritten.append(result_of(request, answer))
        self._changed.set()

    # ----------------------------------------------------------------------------------------------------- its life

    def changed(self, batch: Batch) -> None:
        """Its row was, by who was asked to cancel it."""
        self.batch = batch
        self._changed.set()

    async def run(self) -> None:
        """Whatever goes wrong is the batch's, and told to its owner."""
        try:
            await self._run()
        except Exception as error:
            if not isinstance(error, OpsinError):
                log.exception("%s failed", self.batch.id)
            message = error.message if isinstance(error, OpsinError) else "an error of the server; its log says more"
            await self._end("failed", [BatchFault("server_error", message)])

    async def _run(self) -> None:
        if self.batch.status == "validating" and not await self._validated():
            return
        if self.batch.status == "in_progress":
            await self._answer()
        if self.batch.status == "cancelling":
            await self._end("cancelled")
        elif self._fault is not None:
            await self._end("failed", [self._fault])
        elif self.batch.status == "finalizing":
            await self._end("completed")
        else:
            await self._end("expired")

    async def _validated(self) -> bool:
        """Whether it may go on. (It may have been cancelled, too.)"""
        try:
            checked = await self._checked()
            await self._check_model(checked.model)
        except Cancelled:
            return True
        except Refused as refused:
            await self._end("failed", refused.faults)
            return False
        except (NotFound, BadRequest) as error:
            await self._end("failed", [BatchFault(error.code or "model_not_found", error.message, 1, "body.model")])
            return False
        await self._moved("in_progress", total=checked.lines, model=checked.model)
        return True

    async def _checked(self) -> Checked:
        def on_line() -> None:
            if self.batch.status == "cancelling":
                raise Cancelled

        path = await self._path()
        return await asyncio.to_thread(check, path, self.endpoint, self._max_body_bytes, on_line)

    async def _answer(self) -> None:
        """Until all lines have results, it is cancelled or too late, or cannot go on."""
        self._done = await self._lasting(lambda: self._records.done_lines(self.batch))
        self._lines = requests(await self._path(), self.endpoint, self._max_body_bytes)
        self._say()
        self._window.add(self)
        try:
            while self._goes_on() and (left := self.batch.expires - self._records.now()) > 0:
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await self._changed.wait()
                except TimeoutError:
                    self.batch = await self._lasting(lambda: self._records.get(self.tenant, self.batch.id))
                await asyncio.sleep(WRITE_SECONDS)
                self._changed.clear()
                await self._write()
        finally:
            await self._window.remove(self)
        await self._write()  # what was answered meanwhile
        if self.batch.status == "in_progress" and self._fault is None and self._written == self.batch.total:
            await self._moved("finalizing")

    @property
    def _written(self) -> int:
        return self.batch.completed + self.batch.failed

    def _goes_on(self) -> bool:
        return self.batch.status == "in_progress" and self._fault is None and self._written < self.batch.total

    async def _write(self) -> None:
        results, self._unwritten = self._unwritten, []
        if not results:
            return
        before = self.batch
        self.batch = await self._lasting(lambda: self._records.add_results(before, results))
        self._metrics.wrote(self.batch.completed - before.completed, self.batch.failed - before.failed)
        for _ in results:
            self._may_keep.release()
        if time.monotonic() - self._said > SAY_SECONDS:
            self._say()

    # ------------------------------------------------------------------------------------------------------ its end

    async def _end(self, status: BatchStatus, errors: list[BatchFault] | None = None) -> None:
        """With the files of what was answered, and of what was not."""
        whole = status == "completed" or not self.batch.total
        left = [] if whole else await self._left()
        output = await self._lasting(lambda: output_file(self.batch, self._state))
        error = await self._lasting(lambda: error_file(self.batch, self._state, status, left))
        await self._moved(status, output=output, error=error, errors=errors or [])
        if self.batch.status == "cancelling":  # since a moment ago
            await self._end("cancelled")
        else:
            self._say()

    async def _left(self) -> list[LineRequest]:
        """Requests that have no result, without their bodies; none where the input cannot be read any more."""
        done = await self._lasting(lambda: self._records.done_lines(self.batch))
        try:
            path = await self._path()
        except OpsinError as error:
            log.error("%s: %s", self.batch.id, error.message)
            return []

        def found() -> list[LineRequest]:
            lines = requests(path, self.endpoint, self._max_body_bytes)
            return [LineRequest(one.line, one.custom_id, b"") for one in lines if one.line not in done]

        return await asyncio.to_thread(found)

    async def _moved(self, status: BatchStatus, **changes: object) -> None:
        """Where it was cancelled a moment ago, it goes on as such."""

        def move() -> Batch:
            now = self._records.get(self.tenant, self.batch.id)
            if now.status in ENDED or (now.status == "cancelling" and status != "cancelled"):
                return now
            return self._records.move(self.batch, status, **changes)  # type: ignore[arg-type]

        self.batch = await self._lasting(move)
        if self.batch.status in ENDED:
            self._metrics.ended(self.batch.status)

    async def _path(self) -> Path:
        digest = self.batch.digest
        assert digest is not None
        return await self._lasting(lambda: self._state.blobs.local_path(self.tenant, digest))

    async def _lasting(self, act: Callable[[], Result]) -> Result:
        return await lasting_in_thread(self.batch.id, act)

    def _say(self) -> None:
        self._said, batch = time.monotonic(), self.batch
        log.info(
            "%s is %s: %d of %d lines completed, %d failed", batch.id, batch.status, batch.completed, batch.total,
            batch.failed,
        )  # fmt: skip
