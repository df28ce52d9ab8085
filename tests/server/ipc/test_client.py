"""The engine's client with the real engine process: streams, cancel, death, restart, and an end without a trace."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from opsin_server.config import EngineConfig
from opsin_server.embedded import MODEL
from opsin_server.errors import ConfigError, EngineFailed, Unavailable
from opsin_server.ipc.client import EngineClient, Stream
from opsin_server.ipc.messages import Arrays, Sampling, Submit

IDS = np.arange(10, 30, dtype=np.int32)
POSITIONS = np.broadcast_to(np.arange(20, dtype=np.int32), (3, 20))


def submit(client: EngineClient, name: str, count: int) -> Stream:
    return client.submit(Submit(name, Sampling(temperature=0), count, (), 0, 3), Arrays(IDS, POSITIONS, ()))


async def tokens(stream: Stream) -> list[int]:
    return [token async for output in stream for token in output.ids]


def with_engine(body: Callable[[EngineClient], Awaitable[None]]) -> None:
    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(MODEL)))
        await client.start()
        try:
            await client.wait_ready()
            await body(client)
        finally:
            pid = client.pid
            await client.stop()
        assert pid is None or not Path(f"/proc/{pid}").exists(), "no child is left"

    folders = set(Path(tempfile.gettempdir()).glob("opsin-*"))
    asyncio.run(asyncio.wait_for(main(), 120))
    left = set(Path(tempfile.gettempdir()).glob("opsin-*")) - folders
    assert not [f for f in left if (f / "engine").exists() and f.stat().st_uid == os.getuid() and not _in_use(f)]


def _in_use(folder: Path) -> bool:
    """Another test's engine, running beside this one."""
    return any(str(folder) in p.read_bytes().decode(errors="replace") for p in _command_lines())


def _command_lines() -> list[Path]:
    return [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]


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
        running = [asyncio.create_task(tokens(s)) for s in streams]
        await asyncio.sleep(0.2)
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


def test_one_that_dies_while_it_loads_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it had served before: only what was ready counts as steady."""
    monkeypatch.setattr("opsin_server.ipc.client.STEADY_SECONDS", 0.0)
    monkeypatch.setattr("opsin_server.ipc.client.MAX_RESTARTS", 2)

    async def body(client: EngineClient) -> None:
        client.config = EngineConfig(model="/nowhere")
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while client.state != "failed":
                await asyncio.sleep(0.05)
        assert client.restarts == 2
        assert "/nowhere" in str(client.failure)

    with_engine(body)


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

    asyncio.run(asyncio.wait_for(main(), 120))


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

    asyncio.run(asyncio.wait_for(main(), 120))


def test_an_engine_that_cannot_be_understood_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and nobody waits for it."""

    def fail(frame: bytes) -> None:
        raise ValueError("what is this?")

    monkeypatch.setattr("opsin_server.ipc.client.unpack_from_engine", fail)

    async def main() -> None:
        client = EngineClient(EngineConfig(model=str(MODEL)))
        await client.start()
        try:
            with pytest.raises(ConfigError, match="messages cannot be read"):
                await client.wait_ready()
            assert client.pid is None
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 120))


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

    asyncio.run(asyncio.wait_for(main(), 120))
