"""Real pictures: what `opsin finetune` learns of them on opsin-mini, and how long PEFT on transformers takes.

python bench/vision_tasks.py            both tasks; a quarter of an hour

The pictures are in scikit-learn and scikit-image, which must be installed.
Each system is a whole process: reading the file, training with an evaluation after each epoch, writing the adapter.
Answers are those of `opsin serve`, which is asked about pictures that were held out.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import report
import vision_data
from openai import AsyncOpenAI
from processes import Child, Threads, free_port, wait_until
from systems import START_SECONDS, status
from tables import table
from vision_data import Task

from opsin_server.embedded import MODEL

BATCH, RATE, STREAMS = 16, 2e-3, 8
ONE = Threads(1, "passive")
ARMS = {
    "language alone": ["--no-finetune-vision-layers"],
    "vision alone": ["--no-finetune-language-layers"],
    "both": [],
}


def trained_by_opsin(files: tuple[Path, Path], out: Path, flags: Sequence[str]) -> float:
    """Seconds, of everything."""
    command = [Path(sys.executable).parent / "opsin", "finetune", "--train", files[0], "--valid", files[1]]
    return _timed([*command, "--out", out, *flags])


def trained_by_peft(files: tuple[Path, Path], out: Path, flags: Sequence[str]) -> float:
    return _timed([sys.executable, Path(__file__).parent / "vision_peft.py", MODEL, *files, out, *flags])


def _timed(command: Sequence[str | Path]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, env=ONE.environment(), stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def accuracies(task: Task, adapters: dict[str, Path], folder: Path) -> dict[str, float]:
    """Of the base model ("") and each adapter, on what was held out."""
    port = free_port()
    command: list[str | Path] = [Path(sys.executable).parent / "opsin", "serve", "--port", str(port)]
    for name, path in adapters.items():
        command += ["--adapter", f"{name}={path}"]
    with ExitStack() as stack:
        child = Child(command, ONE, folder / "serve.log")
        stack.callback(child.stop)
        wait_until(lambda: status(f"http://127.0.0.1:{port}/health") == 200, START_SECONDS, child)
        return {name: asyncio.run(_accuracy(task, port, name or "opsin-mini")) for name in ("", *adapters)}


async def _accuracy(task: Task, port: int, model: str) -> float:
    limit = asyncio.Semaphore(STREAMS)

    async def right(client: AsyncOpenAI, number: int) -> bool:
        shown = task.held[number]
        async with limit:
            said = await client.chat.completions.create(
                model=model, messages=task.asked(shown), max_tokens=8, temperature=0.0  # type: ignore[arg-type]
            )  # fmt: skip
        return (said.choices[0].message.content or "").strip() == shown.answer

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client:
        count = len(task.held)
        return sum(await asyncio.gather(*(right(client, number) for number in range(count)))) / count


def measured(task: Task, given: argparse.Namespace, folder: Path) -> list[list[str]]:
    files = task.write(folder)
    same = ["--epochs", str(given.epochs), "--batch-size", str(BATCH), "--learning-rate", str(RATE)]
    same += ["--vision-learning-rate", str(given.vision_learning_rate)]
    adapters: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for arm, flags in ARMS.items():
        name = f"{task.name}-{arm.replace(' ', '-')}"
        adapters[name] = folder / name
        seconds[name] = trained_by_opsin(files, adapters[name], [*same, *flags])
    name = f"{task.name}-peft"
    adapters[name] = folder / name
    seconds[name] = trained_by_peft(files, adapters[name], same)
    right = accuracies(task, adapters, folder)
    rows = [[task.name, "the base model", "", "", f"{right['']:.1%}"]]
    for name, arm in zip(adapters, [*ARMS, "both"], strict=False):
        system = "PEFT" if name.endswith("-peft") else "opsin"
        rows.append([task.name, arm, system, f"{seconds[name]:.0f}", f"{right[name]:.1%}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,materials")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--vision-learning-rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.tasks.split(","):
            rows += measured(getattr(vision_data, name)(), given, Path(folder))
    about = (
        f"opsin-mini, LoRA of rank 16, {given.epochs} epochs of 900 digits and 720 crops, batches of {BATCH}, learning "
        f"rate {RATE:g} (vision {given.vision_learning_rate:g}), one thread. The checkpoint with the lowest loss on "
        "100 and 80 others is taken. Seconds: of the whole process. Right: answers that are the very word, of 797 and "
        "400 pictures that were held out, asked of `opsin serve` at temperature 0."
    )
    titles = ["task", "trained", "by", "seconds", "right"]
    report.write_page("vision-tasks", "Real pictures", datetime.now(UTC), about, table(titles, rows), given.out)


if __name__ == "__main__":
    main()
