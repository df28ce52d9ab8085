"""What "auto" is worth: jobs whose hyperparameters the server chooses, against such with half and twice of each.

python bench/auto_rule.py            both tasks, three sizes; an hour

Through OpenAI's SDK against `opsin serve`, as a client would; with a tenth as many rows, ten at least, to validate
with as to train on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
import vision_data
from openai import OpenAI
from processes import Child, Threads, free_port, wait_until
from systems import START_SECONDS, status
from tables import table
from vision_data import Shown, Task

SIZES, HELD, STREAMS, SEED = (60, 240, 900), 400, 8, 1
ARMS: dict[str, dict[str, float]] = {
    "auto": {},
    "half the rate": {"learning_rate_multiplier": 0.5},
    "twice the rate": {"learning_rate_multiplier": 2.0},
    "half the epochs": {"n_epochs": 0.5},
    "twice the epochs": {"n_epochs": 2.0},
}


def upload(client: OpenAI, task: Task, shown: Sequence[Shown]) -> str:
    rows = [{"messages": [*task.asked(one), {"role": "assistant", "content": one.answer}]} for one in shown]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", data), purpose="fine-tune").id


def trained(client: OpenAI, task: Task, size: int, given: dict[str, Any]) -> Any:
    """The job, once it has succeeded."""
    job = client.fine_tuning.jobs.create(
        model="opsin-mini",
        training_file=upload(client, task, task.train[:size]),
        validation_file=upload(client, task, task.valid[: max(10, size // 10)]),
        seed=SEED,
        method={"type": "supervised", "supervised": {"hyperparameters": given}},  # type: ignore[typeddict-item]
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def accuracy(client: OpenAI, task: Task, model: str) -> float:
    held = task.held[:HELD]

    def right(shown: Shown) -> bool:
        said = client.chat.completions.create(
            model=model, messages=task.asked(shown), max_tokens=8, temperature=0  # type: ignore[arg-type]
        )  # fmt: skip
        return (said.choices[0].message.content or "").strip() == shown.answer

    with ThreadPoolExecutor(STREAMS) as pool:
        return sum(pool.map(right, held)) / len(held)


def measured(client: OpenAI, task: Task, size: int) -> list[list[str]]:
    """A row an arm: what was chosen, and how many of those held out are right."""
    rows, chosen = [], None
    for arm, factors in ARMS.items():
        given: dict[str, Any] = dict(factors)
        if "n_epochs" in factors:
            assert chosen is not None
            given["n_epochs"] = max(1, round(factors["n_epochs"] * chosen.n_epochs))
        job = trained(client, task, size, given)
        numbers = job.hyperparameters
        chosen = chosen or numbers
        right = accuracy(client, task, job.fine_tuned_model)
        rows.append(
            [task.name, f"{size}", arm, f"{numbers.batch_size}", f"{numbers.n_epochs}",
             f"{numbers.learning_rate_multiplier:g}", f"{right:.1%}"]
        )  # fmt: skip
        print("\t".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,materials")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port = free_port()
        command = ["opsin", "serve", "--ephemeral", "--port", str(port)]
        command[0] = str(Path(sys.executable).parent / "opsin")
        child = Child(command, Threads(1, "passive"), Path(folder) / "serve.log")
        stack.callback(child.stop)
        wait_until(lambda: status(f"http://127.0.0.1:{port}/health") == 200, START_SECONDS, child)
        client = stack.enter_context(OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", timeout=600))
        for name in given.tasks.split(","):
            task = getattr(vision_data, name)()
            for size in map(int, given.sizes.split(",")):
                rows += measured(client, task, min(size, len(task.train)))
    about = (
        'opsin-mini, LoRA of rank 16, through the API: what "auto" chose, and half and twice of it. The checkpoint '
        "with the lowest loss on a tenth as many others is taken. Right: answers that are the very word, of "
        f"{HELD} pictures that were held out, at temperature 0; two standard deviations of one "
        "such share are 2 points at 95 %."
    )
    titles = ["task", "rows", "trained", "batch", "epochs", "rate", "right"]
    report.write_page("auto-rule", "What auto is worth", datetime.now(UTC), about, table(titles, rows), given.out)


if __name__ == "__main__":
    main()
