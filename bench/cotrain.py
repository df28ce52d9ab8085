"""Training beside answers: what each costs the other.

python bench/cotrain.py            opsin-mini and a random model of the 135M class; a quarter of an hour
python bench/cotrain.py --quick    opsin-mini, short; two minutes

One engine process serves requests that come at random (open loop), at shares of the capacity that is measured first;
then it trains alone; then both. Retained: tokens trained a second beside answers, over those alone times the share of
the time that answers alone leave idle.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import machine
import models
import numpy as np
import plots
import report
from stats import percentile, short
from tables import table
from train_rows import MadeRow, made_rows

from opsin_plugins.loading.open_model import open_model
from opsin_server.config import EngineConfig
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.messages import Arrays, Sampling, Submit
from opsin_server.ipc.training_events import StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.ipc.training_run import DataShape, TrainingRun
from opsin_server.ipc.training_settings import TrainingSettings
from opsin_server.jobs.what_trains import trainable_modules

PROMPT, TOKENS, STREAMS = 32, 32, 8
LOADS = (0.1, 0.5, 0.8, None)  # None: eight streams that never pause
MICRO_BATCH = 128
SIDES = {"mini": 64, "135m": 112}
TITLES = [
    "model", "load", "tok/s", "x", "TTFT p50", "x", "p99", "x", "gap p50", "x", "p99", "x", "idle", "trained",
    "of alone", "retained",
]  # fmt: skip


@dataclass
class Traffic:
    """What requests saw: seconds to the first token, between tokens; tokens of requests that ended."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    busy: float = 0.0

    @property
    def goodput(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Cell:
    load: float | None
    alone: Traffic
    beside: Traffic
    trained: float  # tokens a second


class Rows:
    """Training data that is there."""

    def __init__(self, rows: Sequence[MadeRow]) -> None:
        self._rows = rows

    def count(self, split: str) -> int:
        return len(self._rows) if split == "train" else 0

    def shape(self) -> DataShape:
        patches = [sum(len(item.pixels) for item in row.items) for row in self._rows]
        return DataShape(max(len(row.row.ids) for row in self._rows), max(patches), 0)

    def row(self, split: str, number: int) -> TrainingRow:
        return self._rows[number].row

    def pixels(self, digest: bytes) -> Pixels:
        return next(row.pixels[digest] for row in self._rows if digest in row.pixels)


class Bench:
    def __init__(self, client: EngineClient, axes: int) -> None:
        self._client, self._axes, self._asked = client, axes, 0

    async def ask(self, into: Traffic) -> None:
        self._asked += 1
        chance = random.Random(self._asked)
        ids = np.array([chance.randrange(300, 1000) for _ in range(PROMPT)], np.int32)
        positions = np.broadcast_to(np.arange(PROMPT, dtype=np.int32), (self._axes, PROMPT))
        message = Submit(f"r{self._asked}", Sampling(temperature=0.0), TOKENS, (), 0, self._axes)
        began = last = time.perf_counter()
        async for output in self._client.submit(message, Arrays(ids, np.ascontiguousarray(positions), ())):
            now = time.perf_counter()
            if last == began:
                into.first.append(now - began)
            else:
                into.gaps += [(now - last) / len(output.ids)] * len(output.ids)
            last = now
            into.tokens += len(output.ids)

    async def closed(self, seconds: float) -> Traffic:
        """Streams that ask again when they are answered."""
        into, until = Traffic(), time.perf_counter() + seconds

        async def stream() -> None:
            while time.perf_counter() < until:
                await self.ask(into)

        return await self._timed(into, [stream() for _ in range(STREAMS)])

    async def opened(self, seconds: float, rate: float) -> Traffic:
        """rate: requests a second."""
        into, chance = Traffic(), random.Random(1)

        async def later(pause: float) -> None:
            await asyncio.sleep(pause)
            await self.ask(into)

        at, asked = chance.expovariate(rate), []
        while at < seconds:
            asked.append(later(at))
            at += chance.expovariate(rate)
        return await self._timed(into, [*asked, asyncio.sleep(seconds)])

    async def under(self, load: float | None, seconds: float, capacity: float) -> Traffic:
        return await (self.closed(seconds) if load is None else self.opened(seconds, load * capacity / TOKENS))

    async def _timed(self, into: Traffic, work: Sequence[object]) -> Traffic:
        before, began = self._busy, time.perf_counter()
        await asyncio.gather(*work)  # type: ignore[call-overload]
        into.seconds, into.busy = time.perf_counter() - began, self._busy - before
        return into

    @property
    def _busy(self) -> float:
        """Processor seconds of the engine: what its loop takes beside the steps is no idle time."""
        assert self._client.pid is not None
        return sum(machine.tree_cpu_seconds(self._client.pid).values())


async def measure(name: str, directory: Path, seconds: float) -> tuple[list[Cell], float, float]:
    """Cells, capacity (tokens a second), and tokens trained a second alone."""
    model = open_model(directory, None, {})
    rows = made_rows(model, 32, 0, SIDES[name])
    modules = tuple(n for n, group in trainable_modules(model).items() if group.startswith("language"))
    config = EngineConfig(str(directory), max_loras=0, max_context=256, prefix_cache=False)
    async with AsyncExitStack() as stack:
        client = EngineClient(config)
        await client.start()
        stack.push_async_callback(client.stop)
        await client.wait_ready()
        bench = Bench(client, max(1, len(model.spec.decoder.rope.sections)))
        await bench.closed(seconds / 4)
        capacity = (await bench.closed(seconds)).goodput
        alone = {load: await bench.under(load, seconds, capacity) for load in LOADS}
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        done: list[StepDone] = []

        def hear(event: TrainingEvent) -> None:
            if isinstance(event, StepDone):
                done.append(event)
            if isinstance(event, TrainingEnded):
                raise RuntimeError(event.error)

        settings = TrainingSettings(
            modules=modules, batch_size=2, max_steps=10**6, save_every=10**9, micro_batch_tokens=MICRO_BATCH
        )
        client.train(TrainingRun("bench", settings, Path(folder), Rows(rows), hear))
        await asyncio.sleep(seconds / 2)  # pictures are new at first

        async def trained(during: object) -> tuple[Traffic | None, float]:
            known, began = len(done), time.perf_counter()
            found = await during  # type: ignore[misc]
            return found, sum(step.tokens for step in done[known:]) / (time.perf_counter() - began)

        _, rate = await trained(asyncio.sleep(seconds))
        cells = []
        for load in LOADS:
            beside, got = await trained(bench.under(load, seconds, capacity))
            assert beside is not None
            cells.append(Cell(load, alone[load], beside, got))
        return cells, capacity, rate


def rows_of(name: str, cells: Sequence[Cell], alone: float) -> list[list[str]]:
    found = []
    for cell in cells:
        idle = max(0.0, 1 - cell.alone.busy / cell.alone.seconds)
        retained = f"{cell.trained / (alone * idle):.0%}" if idle > 0.05 else "-"
        found.append(
            [
                name,
                "8 streams" if cell.load is None else f"{cell.load:.0%}",
                f"{cell.alone.goodput:,.0f}", f"{cell.beside.goodput / cell.alone.goodput:.2f}",
                *_pair(cell.alone.first, cell.beside.first, 50), *_pair(cell.alone.first, cell.beside.first, 99),
                *_pair(cell.alone.gaps, cell.beside.gaps, 50), *_pair(cell.alone.gaps, cell.beside.gaps, 99),
                f"{idle:.0%}", f"{cell.trained:,.0f}", f"{cell.trained / alone:.0%}", retained,
            ]
        )  # fmt: skip
    return found


def panels_of(name: str, cells: Sequence[Cell], alone: float) -> plots.Panels:
    """What a chat sees, beside training over alone; and what training has."""
    groups = ["8 streams" if cell.load is None else f"{cell.load:.0%}" for cell in cells]

    def ratio(of: str, share: float) -> list[float]:
        return [percentile(getattr(c.beside, of), share) / percentile(getattr(c.alone, of), share) for c in cells]

    seen = {"gap p50": ratio("gaps", 50), "gap p99": ratio("gaps", 99), "first token p50": ratio("first", 50)}
    idle = [max(0.0, 1 - cell.alone.busy / cell.alone.seconds) for cell in cells]
    trained = {"trained": [cell.trained / alone for cell in cells], "idle": idle}
    return {
        f"{name}: beside training, times alone": (groups, seen),
        f"{name}: of training alone, of the time": (groups, trained),
    }


def _pair(alone: Sequence[float], beside: Sequence[float], share: float) -> list[str]:
    """Milliseconds alone, and how many times as long beside training."""
    first, second = percentile(alone, share), percentile(beside, share)
    return [short(1000 * first), f"{second / first:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="opsin-mini alone, 8 s a cell")
    parser.add_argument("--models", default="mini,135m")
    parser.add_argument("--seconds", type=float, default=45, help="of a cell")
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    if given.quick:
        given.seconds = 8.0
    rows: list[list[str]] = []
    notes = []
    pictures: plots.Panels = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ["mini"] if given.quick else given.models.split(","):
            directory = models.prepare(name, Path(folder))
            cells, capacity, alone = asyncio.run(measure(name, directory, given.seconds))
            rows += rows_of(name, cells, alone)
            pictures |= panels_of(name, cells, alone)
            print(table(TITLES, rows), flush=True)
            notes.append(f"{name}: capacity {capacity:,.0f} tok/s at 8 streams; training alone {alone:,.0f} tok/s.")
    about = (
        f"{given.seconds:g} s a cell. Prompts of {PROMPT} tokens, answers of {TOKENS}; "
        f"LoRA of the language model, micro-batches of {MICRO_BATCH}, "
        "one thread. Columns with x: beside training, over alone. TTFT: to the first token; gap: "
        "between two tokens; ms. Idle: of the time, serving alone. Trained: tokens a second, and of training alone."
    )
    page = given.out or report.default_path("cotrain", quick=False).with_suffix(".md")
    plots.grouped_bars(page.with_suffix(".png"), pictures)
    shown = table(TITLES, rows) + "\n\n" + "\n".join(notes) + f"\n\n![What each costs the other]({page.stem}.png)"
    report.write_page("cotrain", "Training beside answers", datetime.now(UTC), about, shown, page)


if __name__ == "__main__":
    main()
