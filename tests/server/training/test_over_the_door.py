"""Training in an engine process: rows and pixels on demand, events, requests meanwhile, deaths."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from opsin_server.config import EngineConfig
from opsin_server.engine.training.checkpoint_files import CheckpointFolder, read_state
from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.training_events import StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import MEMORY, Base, Data, Example, LocalRows, base, drive, examples, shape_of


@pytest.fixture
def found(tmp_path: Path) -> Base:
    return base("qwen2_vl", tmp_path / "model")


def settings_of(found: Base, **changes: object) -> TrainingSettings:
    fields = {"modules": found.of("language"), "rank": 4, "batch_size": 2, "epochs": 3, "save_every": 1, **changes}
    return TrainingSettings(**fields)  # type: ignore[arg-type]


@asynccontextmanager
async def engine(found: Base) -> AsyncIterator[EngineClient]:
    client = EngineClient(EngineConfig(str(found.directory), max_context=256, train_memory=MEMORY))
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.stop()


async def until(run: TrainingRun, events: list[TrainingEvent], condition: type | int = TrainingEnded) -> TrainingEvent:
    """The first event of a kind, or the step of that number."""
    async with asyncio.timeout(240):
        while True:
            for event in events:
                if isinstance(condition, int):
                    if isinstance(event, StepDone) and event.step >= condition:
                        return event
                elif isinstance(event, condition):
                    return event  # type: ignore[no-any-return]
            if run.ended is not None and isinstance(condition, int):
                raise AssertionError(run.ended)
            await asyncio.sleep(0.01)


def alone(found: Base, rows: list[Example], settings: TrainingSettings, folder: Path) -> Trainer:
    """The same run in this process, without a door."""
    run = Trainer(found.trained, settings, LocalRows(rows), folder, MemoryPool(MEMORY), shape_of(rows))
    drive(run.run())
    run.close()
    return run


def test_a_run_is_the_same_behind_the_door_and_pixels_travel_once(found: Base, tmp_path: Path) -> None:
    rows, events = examples(found.ours, 5), []
    data, settings = Data(rows), settings_of(found)
    expected = alone(found, rows, settings, tmp_path / "alone")

    async def go() -> None:
        async with engine(found) as client:
            run = TrainingRun("job", settings, tmp_path / "run", data, events.append)
            client.train(run)
            await until(run, events)

    asyncio.run(go())
    (end,) = [event for event in events if isinstance(event, TrainingEnded)]
    assert end.status == "succeeded"
    assert end.step == 9
    state, _ = read_state(Path(end.checkpoint))
    assert torch.equal(state["flat"], expected.trainee.flat)
    pictures = {digest for one in rows for digest in one.pixels}
    assert all(data.asked[digest] == 1 for digest in pictures)
    assert sorted(data.asked[number] for number in range(5)) == [3, 3, 3, 3, 4]  # (one to count its memory)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])])
def test_deaths_of_the_engine_change_nothing(
    kills: int, found: Base, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At random moments; what was not in the last checkpoint is done again, to the same bits."""
    rows, events = examples(found.ours, 5), []
    chance = random.Random(kills)
    settings = settings_of(found, epochs=10 * kills)
    expected = alone(found, rows, settings, tmp_path / "alone")

    async def go() -> None:
        async with engine(found) as client:
            run = TrainingRun("job", settings, tmp_path / "run", Data(rows), events.append)
            client.train(run)
            for number in range(kills):
                await until(run, events, min(run.step + chance.randint(1, 20), 30 * kills - 1))
                await asyncio.sleep(chance.uniform(0, 0.05))
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                while client.restarts == number:
                    await asyncio.sleep(0.01)
            await until(run, events)
            assert client.restarts == kills

    asyncio.run(go())
    end = events[-1]
    assert isinstance(end, TrainingEnded)
    assert end.status == "succeeded"
    assert torch.equal(read_state(Path(end.checkpoint))[0]["flat"], expected.trainee.flat)
    steps = {(event.step, event.loss) for event in events if isinstance(event, StepDone)}
    assert len(steps) == 30 * kills  # (what was done again gave the same losses)
    record_property("result", f"{kills} kill -9 of the engine during a run: the same weights, losses once each")


def test_two_deaths_without_a_step_between_fail_the_run(found: Base, tmp_path: Path) -> None:
    events: list[TrainingEvent] = []

    async def go() -> None:
        async with engine(found) as client:
            run = TrainingRun(
                "job", settings_of(found, epochs=4000), tmp_path / "run", Data(examples(found.ours)), events.append
            )
            client.train(run)
            await until(run, events, 2)
            run.step = 10**6  # (no step counts as further)
            for deaths in (1, 2):
                os.kill(client.pid or 0, signal.SIGKILL)
                while run.deaths < deaths or (client.state != "ready" and run.ended is None):
                    await asyncio.sleep(0.02)
            await client.wait_ready()
            assert run.ended is not None
            assert run.ended.status == "failed"
            assert "ended 2 times in a row" in run.ended.error

    asyncio.run(go())


def test_data_that_cannot_be_read_any_more_fails_the_run_alone(found: Base, tmp_path: Path) -> None:
    rows = examples(found.ours, 4)
    good: list[TrainingEvent] = []
    bad: list[TrainingEvent] = []

    async def go() -> None:
        async with engine(found) as client:
            runs = [
                TrainingRun("good", settings_of(found), tmp_path / "good", Data(rows), good.append),
                TrainingRun("bad", settings_of(found), tmp_path / "bad", Data(rows, broken=2), bad.append),
            ]
            for run in runs:
                client.train(run)
            await until(runs[0], good)
            await until(runs[1], bad)

    asyncio.run(go())
    assert isinstance(good[-1], TrainingEnded)
    assert good[-1].status == "succeeded"
    assert isinstance(bad[-1], TrainingEnded)
    assert bad[-1].status == "failed"
    assert "the disk is gone" in bad[-1].error


def test_modules_that_are_not_there_are_refused(found: Base, tmp_path: Path) -> None:
    events: list[TrainingEvent] = []

    async def go() -> None:
        async with engine(found) as client:
            settings = settings_of(found, modules=("model.language_model.layers.9.self_attn.q_proj",))
            run = TrainingRun("job", settings, tmp_path / "run", Data(examples(found.ours)), events.append)
            client.train(run)
            await until(run, events)

    asyncio.run(go())
    assert isinstance(events[-1], TrainingEnded)
    assert "layers.9" in events[-1].error


def test_a_pause_leaves_a_checkpoint_that_the_run_goes_on_from(found: Base, tmp_path: Path) -> None:
    rows, settings = examples(found.ours, 5), settings_of(found, epochs=20, save_every=None)
    expected = alone(found, rows, settings, tmp_path / "alone")
    folder = tmp_path / "run"

    async def go(resume: bool) -> TrainingEnded:
        events: list[TrainingEvent] = []
        async with engine(found) as client:
            run = TrainingRun("job", settings, folder, Data(rows), events.append)
            client.train(run, resume)
            if not resume:
                await until(run, events, 7)
                run.stop("paused")
            end = await until(run, events)
        assert isinstance(end, TrainingEnded)
        return end

    paused = asyncio.run(go(False))
    assert paused.status == "paused"
    assert CheckpointFolder(folder).newest == folder / f"checkpoint-{paused.step}"
    end = asyncio.run(go(True))
    assert end.status == "succeeded"
    assert torch.equal(read_state(Path(end.checkpoint))[0]["flat"], expected.trainee.flat)


def test_four_runs_at_once_are_each_as_alone(found: Base, tmp_path: Path) -> None:
    """With seeds, ranks and parts of their own; a fifth is refused by name."""
    rows = examples(found.ours, 5)
    asked = [
        settings_of(found, seed=1, epochs=4),
        settings_of(found, seed=2, rank=2, epochs=3),
        settings_of(found, seed=3, modules=found.of("vision", "language"), epochs=2),
        settings_of(found, seed=4, modules=(), full_projector=True, epochs=4),
    ]
    expected = [alone(found, rows, one, tmp_path / f"alone-{n}") for n, one in enumerate(asked)]
    heard: list[list[TrainingEvent]] = [[] for _ in range(5)]

    async def go() -> None:
        async with engine(found) as client:
            settings = [*asked, asked[0]]
            runs = [
                TrainingRun(f"job-{n}", one, tmp_path / f"run-{n}", Data(rows), heard[n].append)
                for n, one in enumerate(settings)
            ]
            for run in runs:
                client.train(run)
            for run, events in zip(runs, heard, strict=True):
                await until(run, events)

    asyncio.run(go())
    ends = [next(event for event in events if isinstance(event, TrainingEnded)) for events in heard]
    assert [end.status for end in ends] == ["succeeded"] * 4 + ["failed"]
    assert "--max-train-jobs" in ends[-1].error
    for end, run in zip(ends, expected, strict=False):
        assert torch.equal(read_state(Path(end.checkpoint))[0]["flat"], run.trainee.flat)


def test_a_stop_is_heard_by_an_engine_that_is_being_started_again(found: Base, tmp_path: Path) -> None:
    events: list[TrainingEvent] = []

    async def go() -> None:
        async with engine(found) as client:
            run = TrainingRun(
                "job", settings_of(found, epochs=4000), tmp_path / "run", Data(examples(found.ours)), events.append
            )
            client.train(run)
            with pytest.raises(ValueError, match="job is going on already"):
                client.train(run)
            await until(run, events, 2)
            os.kill(client.pid or 0, signal.SIGKILL)
            while client.state == "ready":
                await asyncio.sleep(0.01)
            run.stop("cancelled")
            await until(run, events)

    asyncio.run(go())
    assert isinstance(events[-1], TrainingEnded)
    assert events[-1].status == "cancelled"


def test_a_new_run_does_not_mix_with_what_is_in_its_folder(found: Base, tmp_path: Path) -> None:
    heard: list[list[TrainingEvent]] = [[], []]

    async def go() -> None:
        async with engine(found) as client:
            for number, events in enumerate(heard):
                run = TrainingRun(
                    f"{number}", settings_of(found), tmp_path / "run", Data(examples(found.ours)), events.append
                )
                client.train(run)
                await until(run, events)

    asyncio.run(go())
    first, second = (next(e for e in events if isinstance(e, TrainingEnded)) for events in heard)
    assert first.status == "succeeded"
    assert "has checkpoints of a run" in second.error
