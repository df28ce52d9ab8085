"""The engine's client with the real engine process: streams, cancel, death, restart, and an end without a trace."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from opsin_plugins.blocks.adapter_slots import Factors
from opsin_server.config import EngineConfig
from opsin_server.embedded import MODEL
from opsin_server.errors import ConfigError, EngineFailed, Unavailable
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import (
    AdapterRef,
    Arrays,
    Cancel,
    Sampling,
    Submit,
    Unreadable,
    unpack_from_engine,
)
from opsin_server.ipc.restart_policy import RestartPolicy
from opsin_server.ipc.stream import Stream
from opsin_server.ipc.submit_frames import WrongFrames
from support import adapters, oracle

IDS = np.arange(10, 30, dtype=np.int32)
POSITIONS = np.broadcast_to(np.arange(20, dtype=np.int32), (3, 20))
PICTURE = (Item(b"d" * 32, (1, 2, 2), 1, (4, 6)),)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary directory for each test, in which nothing is left at its end."""
    with tempfile.TemporaryDirectory(prefix="opsin-test-", dir="/tmp") as folder:  # (a socket's path must be short)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert not list(Path(folder).iterdir())


def request(name: str, count: int, items: tuple[Item, ...] = ()) -> Submit:
    return Submit(name, Sampling(temperature=0), count, (), 0, 3, items=items)


def submit(client: EngineClient, name: str, count: int) -> Stream:
    return client.submit(request(name, count), Arrays(IDS, POSITIONS, ()))


async def tokens(stream: Stream) -> list[int]:
    return [token async for output in stream for token in output.ids]


def with_engine(
    body: Callable[[EngineClient], Awaitable[None]], policy: RestartPolicy | None = None, **options: int
) -> None:
    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(MODEL), **options), policy=policy)
        await client.start()
        try:
            await client.wait_ready()
            await body(client)
        finally:
            pid = client.pid
            await client.stop()
        assert pid is None or not Path(f"/proc/{pid}").exists(), "no child is left"

    asyncio.run(asyncio.wait_for(main(), 280))


def test_streams_cancel_and_refusals() -> None:
    async def body(client: EngineClient) -> None:
        alone = await tokens(submit(client, "a", 12))
        assert len(alone) == 12
        together = await asyncio.gather(*(tokens(submit(client, f"b{i}", 12)) for i in range(5)))
        assert all(t == alone for t in together)
        long = submit(client, "long", 900)
        long.cancel()
        long.cancel()
        assert await tokens(long) == []
        with pytest.raises(EngineFailed, match="prompt tokens"):
            await tokens(client.submit(Submit("c", Sampling(), 1, (), 0, 3), Arrays(IDS[:0], POSITIONS[:, :0], ())))
        while client.stats.running or client.stats.blocks_used:
            await asyncio.sleep(0.05)
        assert client.open_streams == 0

    with_engine(body)


def test_a_killed_engine_fails_its_streams_and_is_started_again() -> None:
    async def body(client: EngineClient) -> None:
        alone = await tokens(submit(client, "a", 12))
        streams = [submit(client, str(i), 900) for i in range(4)]
        for stream in streams:  # under way
            await anext(aiter(stream))
        running = [asyncio.create_task(tokens(s)) for s in streams]
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        for result in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(result, EngineFailed)
        assert client.state == "restarting"
        with pytest.raises(Unavailable):
            submit(client, "early", 1)
        await client.wait_ready()
        assert client.restarts == 1
        assert await tokens(submit(client, "again", 12)) == alone

    with_engine(body)


@pytest.fixture
def strong() -> Iterator[AdapterRef]:
    """An adapter that changes the answer."""
    weak = adapters.random(oracle.load(MODEL), 4, 0)
    made = {name: [f and Factors(f.a, 8 * f.b) for f in given] for name, given in weak.items()}
    with tempfile.TemporaryDirectory() as folder:
        yield adapters.write(Path(folder) / "a.safetensors", made)


def test_an_engine_that_was_started_again_finds_an_adapter_by_itself(strong: AdapterRef) -> None:
    """A Submit names it by digest and path; nothing is told before, or again."""

    async def body(client: EngineClient) -> None:
        def ask(name: str, adapter: AdapterRef | None) -> Stream:
            message = msgspec.structs.replace(request(name, 12), adapter=adapter)
            return client.submit(message, Arrays(IDS, POSITIONS, ()))

        base, adapted = await asyncio.gather(tokens(ask("a", None)), tokens(ask("b", strong)))
        assert base != adapted
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        while client.state == "ready":
            await asyncio.sleep(0.01)
        await client.wait_ready()
        assert await tokens(ask("c", strong)) == adapted
        with pytest.raises(EngineFailed, match=r"the adapter cannot be loaded: .*No such file"):
            await tokens(ask("d", AdapterRef(bytes(32), "/nowhere")))
        assert await tokens(ask("e", None)) == base

    with_engine(body, max_loras=1)


def test_a_message_that_cannot_be_packed_leaves_nothing_open() -> None:
    async def body(client: EngineClient) -> None:
        for wrong in (Sampling(seed=2**70), Sampling(temperature=0)):
            message = msgspec.structs.replace(request("a", 4), sampling=wrong)
            if wrong.seed:
                with pytest.raises(OverflowError):
                    client.submit(message, Arrays(IDS, POSITIONS, ()))
                assert client.open_streams == 0
            else:
                assert len(await tokens(client.submit(message, Arrays(IDS, POSITIONS, ())))) == 4

    with_engine(body)


def test_an_engine_whose_steps_fail_again_and_again_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request failed, and readiness said 200: now the third failure in a row ends the process."""
    monkeypatch.setattr("opsin_server.ipc.engine_process.WORKER", ("-c", BROKEN_WORKER))

    async def body(client: EngineClient) -> None:
        for number in range(2):
            with pytest.raises(EngineFailed, match="could not compute this request"):
                await tokens(submit(client, str(number), 4))
            assert client.state == "ready"
        with pytest.raises(EngineFailed):
            await tokens(submit(client, "last", 4))
        while client.state == "ready":
            await asyncio.sleep(0.01)
        await client.wait_ready()
        assert client.restarts == 1

    with_engine(body)


BROKEN_WORKER = """
import gc

from opsin_server.engine import worker
from opsin_server.engine.running.runner import Runner

def broken(self, batch):
    raise RuntimeError("no step can be computed")

Runner.run = broken
assert gc.isenabled(), "what requests leave behind is collected"
worker.leave(worker.main())
"""


def test_one_that_dies_while_it_loads_again_and_again_is_given_up() -> None:
    """However long it had served before: only what was ready counts as steady."""

    async def body(client: EngineClient) -> None:
        client.config = EngineConfig(model="/nowhere")
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        async with asyncio.timeout(240):
            while client.state != "failed":
                await asyncio.sleep(0.05)
        assert client.restarts == 2
        assert "/nowhere" in str(client.failure)

    with_engine(body, RestartPolicy(max_restarts=2, steady_seconds=0.0))


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "stranger"}')

    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(tmp_path)))
        await client.start()
        try:
            with pytest.raises(ConfigError, match="has no"):
                await client.wait_ready()
            assert client.state == "failed"
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 280))


def test_a_progress_bar_that_fails_keeps_no_engine_from_being_ready() -> None:
    def fail(progress: object) -> None:
        raise OSError("the terminal is gone")

    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(MODEL)), fail)
        await client.start()
        try:
            await client.wait_ready()
            assert len(await tokens(submit(client, "a", 3))) == 3
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 280))


def unreadable(parts: Sequence[bytes]) -> Any:
    raise Unreadable("what is this?")


def unexpected(parts: Sequence[bytes]) -> Any:
    return Cancel(("a",)), ()


def broken(parts: Sequence[bytes]) -> Any:
    raise RuntimeError("the client's own fault")


@pytest.mark.parametrize(
    ("unpack", "said"),
    [
        (unreadable, "messages cannot be read: what is this?"),
        (unexpected, "messages cannot be read: a Cancel came, which is not expected"),
        (broken, "cannot be run: the client's own fault"),
    ],
)
def test_an_engine_that_cannot_be_understood_is_no_engine(unpack, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and nobody waits for it. Least of all is it ready."""
    monkeypatch.setattr("opsin_server.ipc.engine_process.unpack_from_engine", unpack)

    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(MODEL)))
        await client.start()
        try:
            with pytest.raises(ConfigError, match=said):
                await client.wait_ready()
            assert client.state == "failed"
            assert client.ready is None
            assert client.pid is None
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 280))


@pytest.mark.parametrize("unpack", [unreadable, unexpected])
def test_an_engine_that_talks_nonsense_is_replaced_for_a_reason(
    unpack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "opsin.ipc")
    now = [unpack_from_engine]
    monkeypatch.setattr("opsin_server.ipc.engine_process.unpack_from_engine", lambda parts: now[0](parts))

    async def body(client: EngineClient) -> None:
        before, now[0] = client.pid, unpack
        with pytest.raises(EngineFailed, match="stopped while it worked"):
            await tokens(submit(client, "a", 900))
        now[0] = unpack_from_engine
        await client.wait_ready()
        assert client.restarts == 1
        assert client.pid != before
        assert len(await tokens(submit(client, "b", 3))) == 3

    with_engine(body)
    assert [r.message for r in caplog.records if "messages cannot be read" in r.message and "starting it" in r.message]


# --------------------------------------------------------------------------------- what no engine should die of


def as_they_are(message: Submit, arrays: Arrays) -> list[bytes]:
    return [np.ascontiguousarray(array).tobytes() for array in (arrays.ids, arrays.positions, *arrays.pixels)]


WRONG = {
    "positions of another prompt": (request("wrong", 5), Arrays(IDS, POSITIONS[:, :19], ())),
    "an axis too few": (request("wrong", 5), Arrays(IDS, POSITIONS[:2], ())),
    "ids of another type": (request("wrong", 5), Arrays(IDS.astype(np.int64), POSITIONS, ())),
    "a picture that was not mentioned": (request("wrong", 5), Arrays(IDS, POSITIONS, (np.zeros((4, 6), np.uint8),))),
    "a picture without pixels": (request("wrong", 5, PICTURE), Arrays(IDS, POSITIONS, ())),
    "a picture that cannot be": (
        request("wrong", 5, (Item(b"d" * 32, (1, 2, 2), 1, (0, 2**63)),)),
        Arrays(IDS, POSITIONS, (np.zeros((0, 6), np.uint8),)),
    ),
    "half a picture": (request("wrong", 5, PICTURE), Arrays(IDS, POSITIONS, (np.zeros((2, 6), np.uint8),))),
}


def test_arrays_that_do_not_fit_are_refused_before_they_travel() -> None:
    async def body(client: EngineClient) -> None:
        for message, arrays in WRONG.values():
            with pytest.raises(WrongFrames):
                client.submit(message, arrays)
        assert client.open_streams == 0
        stream = submit(client, "twice", 12)
        with pytest.raises(ValueError, match="twice is already open"):
            submit(client, "twice", 12)
        assert len(await tokens(stream)) == 12

    with_engine(body)


def test_frames_that_do_not_fit_end_their_request_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: EngineClient) -> None:
        alone, before = await tokens(submit(client, "a", 50)), client.pid
        company = asyncio.create_task(tokens(submit(client, "company", 50)))
        with monkeypatch.context() as patch:
            patch.setattr("opsin_server.ipc.client.frames_of", as_they_are)
            for message, arrays in WRONG.values():
                with pytest.raises(EngineFailed, match=r"by their request|could not take"):
                    await tokens(client.submit(message, arrays))
        assert await company == alone
        assert await tokens(submit(client, "b", 50)) == alone
        assert (client.pid, client.restarts, client.open_streams) == (before, 0, 0)

    with_engine(body)


NONSENSE = {
    b"\xc1": None,
    msgspec.msgpack.encode({"type": "Execute", "code": "1"}): None,
    msgspec.msgpack.encode({"type": "Execute", "request_id": "wrong"}): "could not read this request",
    msgspec.msgpack.encode({"type": "Submit", "request_id": "wrong"}): "could not read this request",
}


def test_what_an_engine_cannot_read_ends_at_most_one_request(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def body(client: EngineClient) -> None:
        before = client.pid
        for sent, said in NONSENSE.items():
            with monkeypatch.context() as patch:
                patch.setattr("opsin_server.ipc.engine_process.pack", lambda message, frames=(), sent=sent: [sent])
                stream = submit(client, "wrong", 5)
            if said is None:
                stream.cancel()
            else:
                with pytest.raises(EngineFailed, match=said):
                    await tokens(stream)
            assert len(await tokens(submit(client, "right", 12))) == 12
        assert (client.pid, client.restarts, client.open_streams) == (before, 0, 0)

    with_engine(body)
    assert capfd.readouterr().err.count("a message is ignored") == len(NONSENSE)


def test_a_path_that_is_no_utf8_reaches_the_engine(tmp_path: Path) -> None:
    """And comes back in its sentence, readable."""
    folder = tmp_path / os.fsdecode(b"f\xf6lder")
    folder.mkdir()

    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(folder)))
        await client.start()
        try:
            with pytest.raises(ConfigError, match=r"f\\xf6lder has no config\.json"):
                await client.wait_ready()
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 280))
