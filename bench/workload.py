"""What is asked: a fresh picture and a fresh text of an exact number of tokens, never the same twice in a run."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tokenizers import Tokenizer

SIZE = (224, 224)  # pixels, width and height
NOISE = 48  # pixels of a noisy square: no two pictures compress, or hash, alike


class Workload:
    """Writes files of requests, one JSON list of messages a line, ahead of the clock."""

    def __init__(self, model: Path, folder: Path, text_tokens: int, seed: int, size: tuple[int, int] = SIZE) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._words = sorted(w for w in self._tokenizer.get_vocab() if re.fullmatch("Ġ[a-z]+", w))
        self._folder, self._text_tokens, self._seed, self._size = folder, text_tokens, seed, size
        self._made = 0

    def requests(self, count: int) -> Path:
        lines = []
        for _ in range(count):
            rng = random.Random(f"{self._seed} {self._made}")
            self._made += 1
            lines.append(json.dumps(messages(drawing(rng, self._size), self._text(rng))))
        path = self._folder / f"requests-{self._made}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _text(self, rng: random.Random) -> str:
        while True:
            words = rng.choices(self._words, k=self._text_tokens)
            text = "".join(words).replace("Ġ", " ")
            if len(self._tokenizer.encode(text, add_special_tokens=False).ids) == self._text_tokens:
                return text


def messages(picture: bytes, text: str) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def drawing(rng: random.Random, size: tuple[int, int]) -> bytes:
    """A PNG: a few shapes on a plain ground, and a noisy square."""
    width, height = size
    image = Image.new("RGB", size, _colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 5)):
        x, y = rng.sample(range(width), 2), rng.sample(range(height), 2)
        box = (min(x), min(y), max(x), max(y))
        if rng.random() < 0.5:
            pen.ellipse(box, fill=_colour(rng))
        else:
            pen.rectangle(box, fill=_colour(rng))
    noise = Image.frombytes("RGB", (NOISE, NOISE), rng.randbytes(3 * NOISE * NOISE))
    image.paste(noise, (rng.randrange(width - NOISE), rng.randrange(height - NOISE)))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
