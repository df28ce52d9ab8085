"""One copy of the weights: who asks while something is trained gets what they would get without, and nobody hears of
training that fails."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from opsin_plugins.blocks.model import Model
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.load import load_engine
from opsin_server.engine.training import trainer as trainer_module
from opsin_server.engine.training import visual_tokens
from opsin_server.engine.training.jobs import TrainingJobs
from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.pieces import Piece
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import Arrays, Sampling, Submit
from opsin_server.ipc.training_events import StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_frames import form_of, frames_of_pixels, frames_of_rows
from opsin_server.ipc.training_messages import (
    FromTraining,
    PixelsGiven,
    PixelsWanted,
    RowsGiven,
    RowsWanted,
    StartTraining,
    TrainingEvents,
)
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import MEMORY, Base, Data, Example, LocalRows, base, drive, examples, shape_of

TOKENS = 40
Answer = list[tuple[int, float]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return base("qwen2_vl", tmp_path_factory.mktemp("model"))


def settings_of(found: Base, **changes: object) -> TrainingSettings:
    fields = {"modules": found.of("language", "vision"), "rank": 4, "batch_size": 2, "epochs": 100, **changes}
    return TrainingSettings(**fields)  # type: ignore[arg-type]


async def ask(client: EngineClient, name: str, seed: int, tokens: int = TOKENS) -> Answer:
    ids = np.random.default_rng(seed).integers(3, 140, 12).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 12)).copy()
    sampling = Sampling(temperature=0.0, top_logprobs=0)
    found: Answer = []
    async for output in client.submit(Submit(name, sampling, tokens, (), 0, 3), Arrays(ids, positions, ())):
        found += zip(output.ids, (one.chosen for one in output.logprobs), strict=True)
    return found


def test_answers_are_the_same_during_a_run(found: Base, tmp_path: Path) -> None:
    """One stream to the last bit; several together the same tokens."""
    events: list[TrainingEvent] = []

    async def go() -> None:
        client = EngineClient(EngineConfig(str(found.directory), max_context=256, prefix_cache=False))
        await client.start()
        try:
            await client.wait_ready()
            alone = [await ask(client, f"alone-{seed}", seed) for seed in range(3)]
            together = await asyncio.gather(*(ask(client, f"together-{seed}", seed) for seed in range(3)))
            run = TrainingRun("job", settings_of(found), tmp_path / "run", Data(examples(found.ours, 4)), events.append)
            client.train(run)
            for number in itertools.count():
                if sum(isinstance(event, StepDone) for event in events) > 5:
                    break
                await asyncio.sleep(0.02)
                for seed in range(3):
                    assert await ask(client, f"during-{number}-{seed}", seed) == alone[seed]
                several = await asyncio.gather(*(ask(client, f"several-{number}-{seed}", seed) for seed in range(3)))
                for one, other in zip(several, together, strict=True):
                    assert [token for token, _ in one] == [token for token, _ in other]
                    assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)
            assert run.ended is None
        finally:
            await client.stop()

    asyncio.run(go())


def test_the_base_is_one_and_stays_what_it_is(found: Base, tmp_path: Path) -> None:
    loaded = load_engine(EngineConfig(str(found.directory), max_context=256), lambda done, total: None)
    serving = dict(loaded.engine.runner.model.named_parameters())
    trained = dict(loaded.base.model.named_parameters())
    assert {name: p.data_ptr() for name, p in serving.items()} == {name: p.data_ptr() for name, p in trained.items()}
    before = checksum(loaded.base.model)
    settings = settings_of(found, epochs=3, full_projector=True, dropout=0.1, learning_rate=1e-2)
    rows = examples(found.ours, 4)
    run = Trainer(loaded.base, settings, LocalRows(rows), tmp_path, MemoryPool(MEMORY), shape_of(rows))
    first = run.trainee.flat.clone()
    drive(run.run())
    run.close()
    assert checksum(loaded.base.model) == before
    assert not torch.equal(run.trainee.flat, first)
    assert not any(parameter.requires_grad for parameter in serving.values())
    loaded.engine.close()


def checksum(model: torch.nn.Module) -> str:
    hasher = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        hasher.update(f"{name} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


class Door:
    """Answers what training asks for at once."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows
        self.ended: dict[str, TrainingEnded] = {}
        self.jobs: TrainingJobs | None = None

    def send(self, message: FromTraining) -> None:
        assert self.jobs is not None
        if isinstance(message, RowsWanted):
            rows = [self.rows[number].row for number in message.numbers]
            given = RowsGiven(message.job_id, message.split, message.numbers, tuple(form_of(row) for row in rows))
            self.jobs.take(given, [bytes(frame) for frame in frames_of_rows(rows)])
        elif isinstance(message, PixelsWanted):
            pixels = [next(r.pixels[i.digest] for r in self.rows if i.digest in r.pixels) for i in message.items]
            self.jobs.take(PixelsGiven(message.job_id, message.items), [bytes(f) for f in frames_of_pixels(pixels)])
        elif isinstance(message, TrainingEvents):
            for event in message.events:
                if isinstance(event, TrainingEnded):
                    self.ended[message.job_id] = event


def start(jobs: TrainingJobs, name: str, settings: TrainingSettings, folder: Path, rows: Sequence[Example]) -> None:
    """In a folder of its own."""
    shape = shape_of(rows)
    largest = shape.largest
    message = StartTraining(
        name, settings, str(folder / name), len(rows), 0, largest.tokens, largest.patches, shape.probe
    )
    jobs.take(message, ())


ERRORS = [RuntimeError("boom"), MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not")]


@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.nightly)])
def test_a_piece_that_raises_fails_its_run_and_nothing_else(
    rounds: int,
    found: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """At every kind of piece; another run goes on, and so do answers."""
    loaded = load_engine(EngineConfig(str(found.directory), max_context=256), lambda done, total: None)
    rows = examples(found.ours, 4)
    kinds = piece_kinds(loaded.base, found, rows, tmp_path / "kinds")
    assert len(kinds) > 10
    expected = answer(loaded.engine, "before")
    real = Trainer.run
    for number, (kind, _) in enumerate(itertools.product(sorted(kinds), range(rounds))):
        door = Door(rows)
        door.jobs = jobs = TrainingJobs(loaded.base, door.send, MEMORY, 2)
        error = ERRORS[number % len(ERRORS)]

        def broken(self: Trainer, kind: str = kind, error: Exception = error):
            for piece in real(self):
                yield piece
                if piece.kind == kind and self.checkpoints._folder.name == "bad":
                    raise error

        monkeypatch.setattr(trainer_module.Trainer, "run", broken)
        for name in ("bad", "good"):
            start(jobs, name, settings_of(found, epochs=2), tmp_path / f"{number}", rows)
        while len(jobs):
            jobs.advance()
        assert door.ended["bad"].status == "failed"
        assert ("memory" in door.ended["bad"].error) is (number % len(ERRORS) > 0)
        assert door.ended["good"].status == "succeeded"
        assert torch.is_grad_enabled()
        assert answer(loaded.engine, f"after {number}") == expected
    record_property("result", f"{rounds} faults at each of {len(kinds)} kinds of piece: 0 answers failed, 0 other runs")
    loaded.engine.close()


def test_runs_over_the_same_pictures_encode_each_once(
    found: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = examples(found.ours, 6)
    door, encoded = Door(rows), Counter[bytes]()
    real = visual_tokens.encode

    def counted(model: Model, items: Sequence[Item], *rest: object) -> Generator[Piece, None, None]:
        encoded.update(item.digest for item in items)
        yield from real(model, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(visual_tokens, "encode", counted)
    door.jobs = jobs = TrainingJobs(found.trained, door.send, MEMORY, 2)
    for seed, name in enumerate(("one", "other")):
        start(jobs, name, settings_of(found, modules=found.of("language"), epochs=2, seed=seed), tmp_path, rows)
    while len(jobs):
        jobs.advance()
    assert {one.status for one in door.ended.values()} == {"succeeded"}
    assert encoded == Counter(item.digest for row in rows for item in row.row.items)


def test_a_run_that_does_not_fit_is_told_what_would_do(found: Base, tmp_path: Path) -> None:
    rows = examples(found.ours, 4)

    def train(memory: int, *names: str) -> dict[str, TrainingEnded]:
        door = Door(rows)
        door.jobs = jobs = TrainingJobs(found.trained, door.send, memory, 2)
        for name in names:
            start(jobs, name, settings_of(found, epochs=1), tmp_path / f"{memory}", rows)
        while len(jobs):
            jobs.advance()
        return door.ended

    error = train(2**20, "one")["one"].error
    least = re.search(r"needs ([\d,]+) bytes .* the run has 1,048,576.*; --train-memory (\d+) would do$", error)
    assert least is not None, error
    assert int(least[1].replace(",", "")) == int(least[2])
    ended = train(int(least[2]), "first", "second")
    assert ended["first"].status == "succeeded"
    assert ended["second"].error.endswith("; other runs have the rest: it fits when they have ended")


def piece_kinds(model: object, found: Base, rows: Sequence[Example], folder: Path) -> set[str]:
    run = Trainer(model, settings_of(found, epochs=2), LocalRows(rows), folder, MemoryPool(MEMORY), shape_of(rows))  # type: ignore[arg-type]
    kinds = {piece.kind for piece in run.run() if isinstance(piece, Piece)}
    run.close()
    return kinds - {"waiting"}


def answer(engine: object, name: str) -> list[int]:
    ids = np.arange(3, 15, dtype=np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 12)).copy()
    engine.submit(Submit(name, Sampling(temperature=0.0), 8, (), 0, 3), Arrays(ids, positions, ()))  # type: ignore[attr-defined]
    found: list[int] = []
    while engine.busy:  # type: ignore[attr-defined]
        for output in engine.step():  # type: ignore[attr-defined]
            assert output.error is None
            found += output.ids
    return found
