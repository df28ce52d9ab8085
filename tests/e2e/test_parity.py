"""Random conversations with pictures: the server's greedy answers are transformers' own, token for token."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw

from support.talk import GALLERY, MODEL_NAME, SAMPLES, assistant, sample, system, user
from support.transformers_chat import TransformersChat

TOKENS = 24
SEED = 20261124
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "gray")
QUESTIONS = tuple(
    [row["question"] for row in GALLERY]
    + ["How many colors?", "why", "Tell me a story about it.", "naïve Ünïcödé 日本 😀", "1 + 1 =", " \n", "Is it big?"]
)


def picture(rng: random.Random) -> Image.Image:
    """A sample, a drawing of any size and shape, or noise."""
    kind = rng.random()
    if kind < 0.4:
        return sample(rng.choice(sorted(p.name for p in SAMPLES.glob("*.png"))))
    width, height = rng.randint(20, 500), rng.randint(20, 500)
    if kind < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(noise)
    image = Image.new("RGB", (width, height), rng.choice(("white", "ivory", "navy")))
    brush = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 4)):
        x, y = rng.randrange(width), rng.randrange(height)
        box = (x, y, x + rng.randint(8, 150), y + rng.randint(8, 150))
        rng.choice((brush.ellipse, brush.rectangle))(box, fill=rng.choice(COLOURS))
    return image


def conversation(rng: random.Random) -> list[dict]:
    """One to three pictures over one to four user turns."""
    turns = rng.randint(1, 4)
    where = [rng.randrange(turns) for _ in range(rng.randint(1, 3))]
    messages = [system(rng.choice(QUESTIONS), rng.choice(("system", "developer")))] if rng.random() < 0.3 else []
    for turn in range(turns):
        parts = [picture(rng) for _ in range(where.count(turn))] + [rng.choice(QUESTIONS)]
        rng.shuffle(parts)
        messages.append(user(*parts))
        if turn < turns - 1 and rng.random() < 0.8:
            messages.append(assistant(rng.choice([row["model"] for row in GALLERY])))
    return messages


def differences(client, oracle: TransformersChat, seed: int, count: int) -> list[str]:
    """One line for each conversation whose answers differ."""
    conversations = [conversation(random.Random(f"{seed} {i}")) for i in range(count)]

    def ask(messages: list[dict]):
        return client.chat.completions.create(
            model=MODEL_NAME, messages=messages, temperature=0, max_tokens=TOKENS, logprobs=True, top_logprobs=2
        )

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, conversations))
    found = []
    for i, (messages, answer) in enumerate(zip(conversations, answers, strict=True)):
        theirs, choice = oracle.ask(messages, TOKENS), answer.choices[0]
        if choice.message.content != theirs.text or answer.usage.prompt_tokens != theirs.prompt_tokens:
            gaps = [t.top_logprobs[0].logprob - t.top_logprobs[1].logprob for t in choice.logprobs.content]
            found.append(
                f"seed {seed}, conversation {i}: {choice.message.content!r}, not {theirs.text!r}; "
                f"{answer.usage.prompt_tokens} and {theirs.prompt_tokens} prompt tokens; "
                f"smallest gap of two tokens {min(gaps, default=0):.2g}"
            )
    return found


def test_twenty_random_conversations(client, oracle):
    assert not differences(client, oracle, SEED, 20)


@pytest.mark.nightly
def test_five_hundred_fresh_conversations(client, oracle, record_property):
    """Other shapes of matrices and Pillow's other roundings: one near-tie in a hundred may fall the other way."""
    seed = time.time_ns() % 2**32
    found = differences(client, oracle, seed, 500)
    record_property("result", f"{len(found)} of 500 answers differ from transformers'; seed {seed}")
    print(*found, sep="\n")
    assert len(found) <= 5
