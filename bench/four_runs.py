"""Four training runs over one base: in turn, as a server takes them, against one after another.

python bench/four_runs.py            opsin-mini and a random model of the 135M class; ten minutes

The same runs, steps and rows in one process; the tower is frozen, and visual tokens are known before the clock runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import models
import report
import torch
from stats import Spread
from tables import table
from train import SIDES
from train_rows import MadeRow, made_rows
from train_worker import LocalRows, largest_of, modules_of

from opsin_plugins.loading.open_model import open_model
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.load import load_engine
from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.trained_model import TrainedModel
from opsin_server.engine.training.trainer import RunShape, Trainer
from opsin_server.ipc.training_settings import TrainingSettings

RUNS, BATCH, MEMORY = 4, 4, 4 * 2**30
STEPS = {"mini": 16, "135m": 2}  # of each run, in a round


class Run:
    """One that can be asked for a step."""

    def __init__(
        self, base: TrainedModel, rows: Sequence[MadeRow], modules: tuple[str, ...], seed: int, pool: MemoryPool
    ) -> None:
        settings = TrainingSettings(
            modules=modules, rank=16, schedule="constant", batch_size=BATCH, epochs=10**6, save_every=10**9, seed=seed
        )
        folder = Path(tempfile.mkdtemp())
        self.trainer = Trainer(base, settings, LocalRows(rows), folder, pool, RunShape(largest_of(rows)))
        self._pieces: Iterator[object] = self.trainer.run()

    def step(self) -> None:
        wanted = self.trainer.progress.step + 1
        while self.trainer.progress.step < wanted:
            next(self._pieces)


def one_after_another(runs: Sequence[Run], steps: int) -> None:
    for run in runs:
        for _ in range(steps):
            run.step()


def in_turn(runs: Sequence[Run], steps: int) -> None:
    for _ in range(steps):
        for run in runs:
            run.step()


def measure(name: str, directory: Path, rounds: int) -> list[str]:
    model = open_model(directory, None, {})
    rows = made_rows(model, 8, 0, SIDES[name])
    config = EngineConfig(str(directory), dtype="float32", max_context=1024, max_sequences=1, max_loras=0)
    loaded = load_engine(config, lambda done, total: None)
    pool, modules = MemoryPool(MEMORY, RUNS), tuple(modules_of(model, "frozen"))
    with ExitStack() as stack:
        stack.callback(loaded.engine.close)
        runs = [Run(loaded.base, rows, modules, seed, pool) for seed in range(RUNS)]
        for run in runs:
            stack.callback(run.trainer.close)
        in_turn(runs, 2)  # an epoch, in which pictures are new
        seconds: dict[Callable[[Sequence[Run], int], None], list[float]] = {one_after_another: [], in_turn: []}
        for number in range(rounds):
            ways = list(seconds) if number % 2 else list(seconds)[::-1]
            for way in ways:
                before, began = _tokens(runs), time.perf_counter()
                way(runs, STEPS[name])
                seconds[way].append((_tokens(runs) - before) / (time.perf_counter() - began))
    ratio = Spread.of(b / a for a, b in zip(seconds[one_after_another], seconds[in_turn], strict=True))
    rates = [Spread.of(seconds[way]) for way in seconds]
    return [name, *map(str, rates), str(ratio)]


def _tokens(runs: Sequence[Run]) -> int:
    return sum(run.trainer.progress.tokens for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mini,135m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(name, models.prepare(name, Path(folder)), given.rounds) for name in given.models.split(",")]
    about = (
        f"{RUNS} runs of rank 16 over one base, batches of {BATCH}, one thread; tokens a second of all together, and "
        "in turn over one after another in the same round."
    )
    titles = ["model", "one after another", "in turn", "ratio"]
    report.write_page("four-runs", "Four runs over one base", datetime.now(UTC), about, table(titles, found), given.out)


if __name__ == "__main__":
    main()
