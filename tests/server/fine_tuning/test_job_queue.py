"""So many at once, of those that wait the oldest first; who waits is told its place."""

from __future__ import annotations

import asyncio

from opsin_server.fine_tuning.job_queue import JobQueue


class Told:
    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []

    async def __call__(self, job_id: str, place: int) -> None:
        self.places.append((job_id, place))


async def job(queue: JobQueue, name: str, going: list[str], end: asyncio.Event) -> None:
    async with queue.turn(name, (True, ord(name))):
        going.append(name)
        await end.wait()
    going.remove(name)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_turns_come_in_order() -> None:
    async def go() -> None:
        told, going = Told(), list[str]()
        queue, ends = JobQueue(2, told), {name: asyncio.Event() for name in "abcde"}
        tasks = {name: asyncio.create_task(job(queue, name, going, ends[name])) for name in "abcde"}
        await settled()
        assert going == ["a", "b"]
        assert told.places == [("c", 1), ("d", 2), ("e", 3)]
        ends["b"].set()
        await settled()
        assert going == ["a", "c"]
        assert told.places[3:] == [("d", 1), ("e", 2)]
        tasks["d"].cancel()  # the server ends
        await settled()
        queue.leave("e")  # somebody has cancelled it: its turn is now
        await settled()
        assert going == ["a", "c", "e"]
        for end in ends.values():
            end.set()
        await asyncio.wait(tasks.values())
        assert going == []
        again = asyncio.create_task(job(queue, "f", going, ends["a"]))
        await again
        assert told.places[5:] == []

    asyncio.run(go())


def test_one_that_is_cancelled_with_its_turn_gives_it_on() -> None:
    async def go() -> None:
        going, end = list[str](), asyncio.Event()
        queue = JobQueue(1, Told())
        first = asyncio.create_task(job(queue, "a", going, end))
        await settled()
        second, third = (asyncio.create_task(job(queue, name, going, asyncio.Event())) for name in "bc")
        await settled()
        end.set()
        await asyncio.sleep(0)
        second.cancel()
        await settled()
        await asyncio.wait({first, second})
        await settled()
        assert going == ["c"]
        third.cancel()
        await asyncio.wait({third})

    asyncio.run(go())


def test_who_was_made_first_is_next_however_late_its_files_were_read() -> None:
    async def go() -> None:
        told, going = Told(), list[str]()
        queue, ends = JobQueue(1, told), {name: asyncio.Event() for name in "abcd"}
        tasks = []
        for name in "adbc":  # in which their files were read
            tasks.append(asyncio.create_task(job(queue, name, going, ends[name])))
            await settled()
        assert told.places == [("d", 1), ("b", 1), ("d", 2), ("c", 2), ("d", 3)]
        for name in "abcd":
            assert going == [name]
            ends[name].set()
            await settled()
        await asyncio.wait(tasks)

    asyncio.run(go())


def test_one_that_is_cancelled_while_it_is_told_its_place_takes_none() -> None:
    async def go() -> None:
        going, end, telling = list[str](), asyncio.Event(), asyncio.Event()

        async def told(job_id: str, place: int) -> None:
            if job_id == "b":
                await telling.wait()

        queue = JobQueue(1, told)
        first = asyncio.create_task(job(queue, "a", going, end))
        await settled()
        second = asyncio.create_task(job(queue, "b", going, end))
        await settled()
        second.cancel()
        await asyncio.wait({second})
        end.set()
        await first
        assert queue.counts == (0, 0)

    asyncio.run(go())
