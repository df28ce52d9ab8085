"""Training alone, against transformers + PEFT on the same rows: tokens a second and peaks of memory.

python bench/train.py            opsin-mini and a random model of the 135M class; half an hour
python bench/train.py --quick    opsin-mini, two rounds; a minute
python bench/train.py --device cuda --dtype bfloat16 --models 2b    a random Qwen2-VL-2B on a GPU; three minutes

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
SIDES = {"mini": 96, "135m": 392, "2b": 784}
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


def measure(name: str, directory: Path, tower: str, given: argparse.Namespace, rounds: int) -> list[list[str]]:
    workers = {system: _start(system, tower, directory, name, given) for system in SYSTEMS}
    for number in range(rounds + 1):  # the first is the epoch in which pictures are new
        for worker in workers.values():
            worker.epoch(last=number == rounds)
    for worker in workers.values():
        worker.process.wait()
    return [_row(name, tower, given.dtype, system, workers) for system in SYSTEMS]


def _start(system: str, tower: str, directory: Path, name: str, given: argparse.Namespace) -> Worker:
    command = [sys.executable, str(WORKER), system, tower, str(directory), "--rows", str(ROWS)]
    command += ["--side", str(SIDES[name]), "--dtype", given.dtype, "--device", given.device]
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
    parser.add_argument("--models", default="mini,135m")
    parser.add_argument("--towers", default="frozen,trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ["mini"] if given.quick else given.models.split(","):
            directory = models.prepare(name, Path(folder))
            for tower in given.towers.split(","):
                rows += measure(name, directory, tower, given, 2 if given.quick else given.rounds)
                print(*(" ".join(row) for row in rows[-len(SYSTEMS) :]), sep="\n", flush=True)
    about = (
        f"Epochs of {ROWS} rows with one picture each, a LoRA of rank 16, batches of 8, one thread. First epoch, and "
        "those after it: seconds, and times as fast as PEFT in the same round. Peak: MiB of the process (on a GPU of "
        "what was allocated there), and of it what training took; over PEFT's whole peak. Loss: of the first epoch. "
        "Unsloth needs a GPU; it publishes 2 times the speed of Hugging Face with FlashAttention 2 and 40 to 60 % less "
        "memory for Llama-3.2-11B-Vision, 1.8 times for Qwen2-VL-7B (its documentation; not measured here)."
    )
    titles = [
        "model", "tower", "dtype", "system", "first, s", "over PEFT", "later, s", "over PEFT", "peak", "training",
        "of PEFT's", "loss",
    ]  # fmt: skip
    report.write_page("train", "Training alone", datetime.now(UTC), about, table(titles, rows), given.out)


if __name__ == "__main__":
    main()
