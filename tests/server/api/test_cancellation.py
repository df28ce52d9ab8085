"""Work that ends before its time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opsin_server.api.admission import Admission, Draining, Saturated
from opsin_server.api.cancellation import CancelScope, ClientGone


class StopError(Exception):
    pass


async def silent() -> Any:
    await asyncio.sleep(1000)


async def gone() -> Any:
    return {"type": "http.disconnect"}


def test_a_disconnect_ends_the_work_and_waits_for_its_clean_up() -> None:
    cleaned: list[str] = []

    async def work() -> None:
        async with CancelScope().attended(gone):
            try:
                await asyncio.sleep(1000)
            finally:
                cleaned.append("yes")

    with pytest.raises(ClientGone):
        asyncio.run(work())
    assert cleaned == ["yes"]


def test_the_first_reason_counts() -> None:
    async def main() -> None:
        lifetime = CancelScope()
        asyncio.get_running_loop().call_later(0.01, lifetime.end, StopError("first"))
        asyncio.get_running_loop().call_later(0.01, lifetime.end, StopError("second"))
        with pytest.raises(StopError, match="first"):
            async with lifetime.attended(silent):
                await asyncio.sleep(1000)
        await asyncio.sleep(0)  # no cancellation is left over
        with pytest.raises(StopError, match="first"):
            async with lifetime.attended(silent):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("failure", [None, ValueError("x")])
def test_an_end_as_the_work_ends_leaves_no_cancellation_behind(failure: Exception | None) -> None:
    async def work() -> None:
        lifetime = CancelScope()
        async with lifetime.attended(silent):
            lifetime.end(StopError())
            if failure is not None:
                raise failure

    async def main() -> None:
        with pytest.raises(StopError):
            await work()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def work() -> None:
        async with CancelScope().attended(silent):
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1  # the watcher has gone too

    asyncio.run(main())


def test_work_that_ends_in_time_is_left_alone() -> None:
    async def main() -> int:
        async with CancelScope().attended(silent):
            await asyncio.sleep(0)
            return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 2


def test_what_a_draining_server_does_not_finish_ends_at_once() -> None:
    async def main() -> None:
        admission = Admission(2)
        kept, ended = admission.admit(), admission.admit(drained=False)

        async def wait_in(scope: CancelScope) -> None:
            async with scope.attended(silent):
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(wait_in(scope)) for scope in (kept, ended)]
        await asyncio.sleep(0)
        admission.drain()
        with pytest.raises(Draining):
            await asyncio.wait_for(tasks[1], 30)
        assert not tasks[0].done()
        tasks[0].cancel()

    asyncio.run(main())


def test_admission_counts() -> None:
    async def main() -> None:
        admission = Admission(2)
        first, second = admission.admit(), admission.admit()
        with pytest.raises(Saturated, match="2 requests"):
            admission.admit()
        admission.release(first)
        admission.release(first)
        assert len(admission) == 1
        third = admission.admit()
        admission.drain()
        with pytest.raises(Draining):
            admission.check()
        idle = asyncio.create_task(admission.idle())
        admission.release(second)
        await asyncio.sleep(0)
        assert not idle.done()
        admission.release(third)
        await asyncio.wait_for(idle, 30)

    asyncio.run(main())
