"""Jobs through OpenAI's SDK: what they are trained on, and how one is watched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from PIL import Image

from support.talk import user

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 220)}
WORDS = {"red": "7", "green": "3", "blue": "5"}
QUESTION = "Name the colour."
FAST = {"learning_rate": 2e-3, "vision_learning_rate": 2e-4}


def picture(colour: str, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-25, 26, (64, 64, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def lines(seeds: range) -> bytes:
    rows = [
        {"messages": [user(QUESTION, picture(colour, seed)), {"role": "assistant", "content": WORDS[colour]}]}
        for seed in seeds
        for colour in COLOURS
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: openai.OpenAI, data: bytes, name: str = "train.jsonl") -> str:
    return client.files.create(file=(name, data), purpose="fine-tune").id


def until(
    client: openai.OpenAI, job_id: str, condition: Callable[[FineTuningJob], bool], seconds: float = 90
) -> FineTuningJob:
    end = time.monotonic() + seconds
    while not condition(job := client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < end, f"{job}\n{messages(client, job_id)}"
        time.sleep(0.1)
    return job


def over(job: FineTuningJob) -> bool:
    return job.status in ("succeeded", "failed", "cancelled")


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """From the first one on."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def answers(client: openai.OpenAI, model: str) -> list[str]:
    found = []
    for colour in COLOURS:
        said = client.chat.completions.create(
            model=model, messages=[user(QUESTION, picture(colour, 500))], max_tokens=4, temperature=0
        )  # type: ignore[arg-type]
        found.append((said.choices[0].message.content or "").strip())
    return found


def refused(ask: Callable[[], object]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        ask()
    return error.value
