"""Training alone, against transformers + PEFT on the same rows: tokens a second and peaks of memory.

python bench/train.py            a random model of the 135M class; half an hour
python bench/train.py --quick    opsin-mini, two rounds; a minute

Each system has a process of its own and trains an epoch when it is its turn, round by round; so a ratio is of two times
that lie seconds apart. "labels only" is PEFT that is given the loss on labelled positions alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import models
import report
from stats import Spread, short
from tables import table

WORKER = Path(__file__).parent / "train_worker.py"
SYSTEMS = ("opsin", "peft", "peft-labels")
NAMES = {"opsin": "opsin", "peft": "PEFT", "peft-labels": "PEFT, labels only"}
SIDES = {"mini": 96, "135m": 392}
ROWS = 16


@dataclass
class Worker:
    """told: of each epoch, seconds, loss and bytes."""

    process: subprocess.Popen[str]
    told: list[dict[str, Any]] = field(default_factory=list)

    def epoch(self, last: bool) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("last\n" if last else "epoch\n")
        self.process.stdin.flush()
        self.told.append(json.loads(self.process.stdout.readline()))


def measure(name: str, directory: Path, tower: str, dtype: str, rounds: int) -> list[list[str]]:
    workers = {system: _start(system, tower, directory, name, dtype) for system in SYSTEMS}
    for number in range(rounds + 1):  # the first is the epoch in which pictures are new
        for worker in workers.values():
            worker.epoch(last=number == rounds)
    for worker in workers.values():
        worker.process.wait()
    return [_row(name, tower, dtype, system, workers) for system in SYSTEMS]


def _start(system: str, tower: str, directory: Path, name: str, dtype: str) -> Worker:
    command = [sys.executable, str(WORKER), system, tower, str(directory), "--rows", str(ROWS)]
    command += ["--side", str(SIDES[name]), "--dtype", dtype]
    pipe = subprocess.PIPE
    return Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True))


def _row(name: str, tower: str, dtype: str, system: str, workers: dict[str, Worker]) -> list[str]:
    mine, theirs = workers[system].told, workers["peft"].told
    first = theirs[0]["seconds"] / mine[0]["seconds"]
    later = Spread.of(b["seconds"] / a["seconds"] for a, b in zip(mine[1:], theirs[1:], strict=True))
    seconds = Spread.of(one["seconds"] for one in mine[1:])
    memory = (mine[-1]["peak"] - mine[-1]["loaded"]) / 2**20
    ratio = mine[-1]["peak"] / theirs[-1]["peak"]
    return [
        name, tower, dtype, NAMES[system], short(mine[0]["seconds"]), short(first), str(seconds), str(later),
        f"{mine[-1]['peak'] / 2**20:,.0f}", f"{memory:,.0f}", short(ratio), f"{mine[0]['loss']:.4f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="opsin-mini alone, two rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mini",) if given.quick else ("mini", "135m"):
            directory = models.prepare(name, Path(folder))
            for tower in ("frozen", "trained"):
                rows += measure(name, directory, tower, given.dtype, 2 if given.quick else given.rounds)
    about = (
        f"Epochs of {ROWS} rows with one picture each, a LoRA of rank 16, batches of 8, one thread. First epoch, and "
        f"those after it: seconds, and times as fast as PEFT in the same round. Peak: MiB of the process, and of it "
        "what training took; over PEFT's whole peak. Loss: of the first epoch."
    )
    titles = [
        "model", "tower", "dtype", "system", "first, s", "over PEFT", "later, s", "over PEFT", "peak", "training",
        "of PEFT's", "loss",
    ]  # fmt: skip
    report.write_page("train", "Training alone", datetime.now(UTC), about, table(titles, rows), given.out)


if __name__ == "__main__":
    main()
