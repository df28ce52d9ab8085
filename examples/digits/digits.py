"""Handwritten digits, taught to the model of a running server through OpenAI's own SDK: five minutes on two CPU cores.

    make serve                                          in one terminal
    .venv/bin/pip install scikit-learn                  which has the digits
    .venv/bin/python examples/digits/digits.py          in another

Nothing in it is Opsin's: with `OPENAI_BASE_URL` and a key it would do the same elsewhere.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from openai import OpenAI
from PIL import Image
from sklearn.datasets import load_digits

BASE, MODEL = "http://127.0.0.1:8000/v1", "opsin-mini"
QUESTION, SIDE = "Which digit is this?", 48
TRAIN, VALID = 900, 100  # the other 797 are held out
STREAMS = 8


def messages(picture: np.ndarray) -> list[Any]:
    file = io.BytesIO()
    Image.fromarray((picture * 15.9375).astype(np.uint8)).resize((SIDE, SIDE)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def training_file(pictures: Sequence[np.ndarray], digits: Sequence[int]) -> bytes:
    """One conversation a line, as OpenAI has them."""
    rows = [
        {"messages": [*messages(picture), {"role": "assistant", "content": str(digit)}]}
        for picture, digit in zip(pictures, digits, strict=True)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def accuracy(client: OpenAI, model: str, pictures: Sequence[np.ndarray], digits: Sequence[int]) -> float:
    def right(number: int) -> bool:
        said = client.chat.completions.create(
            model=model, messages=messages(pictures[number]), max_tokens=8, temperature=0
        )
        return (said.choices[0].message.content or "").strip() == str(digits[number])

    with ThreadPoolExecutor(STREAMS) as pool:
        return sum(pool.map(right, range(len(digits)))) / len(digits)


def follow(client: OpenAI, job_id: str) -> None:
    """Prints what happens, until the job has ended."""
    seen: set[str] = set()
    while True:
        status = client.fine_tuning.jobs.retrieve(job_id).status
        for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data[::-1]:
            if event.id not in seen and (event.type != "metrics" or "validation" in event.message):
                print(event.message)
            seen.add(event.id)
        if status in ("succeeded", "failed", "cancelled"):
            return
        time.sleep(1)


def plot(losses: Sequence[float], width: int = 72, height: int = 10) -> str:
    """The curve of a run, for a terminal."""
    points = [float(np.mean(part)) for part in np.array_split(np.array(losses), min(width, len(losses)))]
    top = max(points)
    rows = [[" "] * len(points) for _ in range(height)]
    for column, value in enumerate(points):
        rows[height - 1 - min(height - 1, int(value / top * (height - 1)))][column] = "*"
    return "\n".join(f"{top * (height - 1 - i) / (height - 1):6.2f} |{''.join(row)}" for i, row in enumerate(rows))


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", BASE), api_key=os.environ.get("OPENAI_API_KEY", "none"))
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    pictures, digits = found.images[order], found.target[order].tolist()
    held = slice(TRAIN + VALID, None)
    print(f"before: {accuracy(client, MODEL, pictures[held], digits[held]):.1%} of the digits that are held out")
    train = client.files.create(
        file=("train.jsonl", training_file(pictures[:TRAIN], digits[:TRAIN])), purpose="fine-tune"
    )
    chosen = slice(TRAIN, TRAIN + VALID)
    valid = client.files.create(
        file=("valid.jsonl", training_file(pictures[chosen], digits[chosen])), purpose="fine-tune"
    )
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=train.id, validation_file=valid.id, suffix="digits")
    began = time.monotonic()
    follow(client, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job {job.status}: {job.error}")
    (result,) = job.result_files
    text = base64.b64decode(client.files.content(result).read()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    print(plot([float(row["train_loss"]) for row in rows]))
    print(f"{len(rows)} steps in {time.monotonic() - began:.0f} s; {job.hyperparameters}")
    print(f"after: {accuracy(client, job.fine_tuned_model, pictures[held], digits[held]):.1%}, {job.fine_tuned_model}")


if __name__ == "__main__":
    main()
