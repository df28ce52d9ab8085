"""Finds pictures by pictures, with the embeddings of a running server and a cosine: some seconds on two CPU cores.

    make serve                                          in one terminal
    .venv/bin/python examples/embeddings/search.py      in another

The pictures are drawn here. Each is embedded three times: alone, and with a question behind it. What opsin-mini thinks
before it answers a question is what its answer depends on, so that the question decides which pictures are alike.
"""

from __future__ import annotations

import base64
import io
import math
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from openai import OpenAI
from openai.types import CreateEmbeddingResponse
from PIL import Image, ImageDraw

BASE, MODEL = "http://127.0.0.1:8000/v1", "opsin-mini"
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
QUESTIONS = (None, "What shape is this?", "What color is it?")
SIDE, STREAMS, TOGETHER, FOUND = 160, 8, 16, 3

Drawn = tuple[str, str]
"""A picture's shape and colour."""


def draw(shape: str, colour: str, rng: random.Random) -> Image.Image:
    """Somewhere on a white ground, of some size."""
    size = rng.randint(SIDE // 4, SIDE // 2)
    x, y = (rng.randint(4, SIDE - size - 4) for _ in range(2))
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen, box = ImageDraw.Draw(picture), (x, y, x + size, y + size)
    if shape == "circle":
        pen.ellipse(box, colour)
    elif shape == "square":
        pen.rectangle(box, colour)
    else:
        corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.45)
        turns = [(2 * math.pi * i / corners, inner if corners == 10 and i % 2 else 1.0) for i in range(corners)]
        middle, half = (x + size / 2, y + size / 2), size / 2
        points = [(middle[0] + half * r * math.sin(a), middle[1] - half * r * math.cos(a)) for a, r in turns]
        pen.polygon(points, colour)
    return picture


def part(picture: Image.Image) -> dict[str, object]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def alone(client: OpenAI, pictures: Sequence[Image.Image]) -> np.ndarray:
    """[pictures, dimensions]: many in one request, each an input."""
    rows: list[list[float]] = []
    for at in range(0, len(pictures), TOGETHER):
        parts = [part(picture) for picture in pictures[at : at + TOGETHER]]
        found = client.embeddings.create(model=MODEL, input=parts)  # type: ignore[arg-type]
        rows += [one.embedding for one in found.data]
    return np.array(rows)


def asked(client: OpenAI, pictures: Sequence[Image.Image], question: str) -> np.ndarray:
    """[pictures, dimensions]: each a conversation, embedded where the answer would begin."""

    def embed(picture: Image.Image) -> list[float]:
        content = [part(picture), {"type": "text", "text": question}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "add_generation_prompt": True}
        return client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse).data[0].embedding

    with ThreadPoolExecutor(STREAMS) as pool:
        return np.array(list(pool.map(embed, pictures)))


def nearest(queries: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[queries, FOUND]: which of the kept are nearest, by cosine (all vectors have length 1)."""
    return np.argsort(-queries @ kept.T, axis=1)[:, :FOUND]


def share(found: np.ndarray, wanted: Sequence[Drawn], kept: Sequence[Drawn], field: int) -> float:
    """Of all that was found, how much is of the same shape (0) or colour (1)."""
    same = [kept[i][field] == one[field] for one, row in zip(wanted, found, strict=True) for i in row]
    return sum(same) / len(same)


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", BASE), api_key=os.environ.get("OPENAI_API_KEY", "none"))
    rng = random.Random(5)
    names: list[Drawn] = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    kept, wanted = ([draw(*name, rng) for name in names] for _ in range(2))
    print(f"{len(kept)} pictures are kept, {len(wanted)} others are looked for; the {FOUND} nearest have")
    for question in QUESTIONS:
        ours, theirs = (
            alone(client, some) if question is None else asked(client, some, question) for some in (kept, wanted)
        )
        found = nearest(theirs, ours)
        shape, colour = (share(found, names, names, field) for field in (0, 1))
        example = ", ".join(" ".join(reversed(names[i])) for i in found[0])
        print(f"{question or 'the picture alone':<20} the same shape {shape:4.0%}, the same color {colour:4.0%}")
        print(f"{'':<20} a {names[0][1]} {names[0][0]} finds: {example}")


if __name__ == "__main__":
    main()
