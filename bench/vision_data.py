"""Two tasks of real pictures from installed packages: what bench/vision_tasks.py trains on.

digits: scikit-learn's 1,797 handwritten digits. materials: crops of photographs that scikit-image has, in grey;
those that are trained on are of a photograph's left, those that are asked about of its right.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE = 48  # pixels: 9 visual tokens of opsin-mini
MATERIALS = {
    "brick": "brick", "grass": "grass", "gravel": "gravel", "coins": "coins", "hubble_deep_field": "stars",
    "immunohistochemistry": "tissue", "chelsea": "cat", "page": "paper",
}  # fmt: skip
EDGE = 0.6  # of a photograph's width, left of which is trained on


@dataclass(frozen=True)
class Shown:
    """A picture, and what it shows."""

    picture: Image.Image
    answer: str

    @property
    def url(self) -> str:
        file = io.BytesIO()
        self.picture.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Task:
    """valid: to choose the checkpoint by. held: never seen in training."""

    name: str
    question: str
    train: Sequence[Shown]
    valid: Sequence[Shown]
    held: Sequence[Shown]

    def asked(self, shown: Shown) -> list[dict[str, object]]:
        """The messages of a chat."""
        parts = [{"type": "image_url", "image_url": {"url": shown.url}}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Training files, as OpenAI has them."""
        files = folder / f"{self.name}.train.jsonl", folder / f"{self.name}.valid.jsonl"
        for file, rows in zip(files, (self.train, self.valid), strict=True):
            with file.open("w") as lines:
                for row in rows:
                    said = {"role": "assistant", "content": row.answer}
                    lines.write(json.dumps({"messages": [*self.asked(row), said]}) + "\n")
        return files


def digits() -> Task:
    """1,000 to train on, 100 of which choose the checkpoint; 797 are held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    shown = [
        Shown(Image.fromarray((found.images[i] * 15.9375).astype(np.uint8)).resize((SIDE, SIDE)), str(found.target[i]))
        for i in order
    ]
    return Task("digits", "Which digit is this?", shown[:900], shown[900:1000], shown[1000:])


def materials(each: int = 90, valid: int = 10, held: int = 50) -> Task:
    """So many crops of each photograph."""
    import skimage.data

    chance, parts = np.random.default_rng(0), ([], [], [])  # type: ignore[var-annotated]
    for name, answer in MATERIALS.items():
        whole = ImageOps.grayscale(Image.fromarray(getattr(skimage.data, name)()))
        left = whole.crop((0, 0, int(whole.width * EDGE), whole.height))
        right = whole.crop((int(whole.width * EDGE), 0, whole.width, whole.height))
        for part, source, count in zip(parts, (left, left, right), (each, valid, held), strict=True):
            part += [Shown(_crop(source, chance), answer) for _ in range(count)]
    for part in parts:
        chance.shuffle(part)
    return Task("materials", "What is this?", *parts)


def _crop(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """With a contrast and a brightness of its own, so that neither tells what it is."""
    side = int(chance.integers(64, 113))
    x, y = (int(chance.integers(0, size - side + 1)) for size in picture.size)
    cut = np.asarray(picture.crop((x, y, x + side, y + side)).resize((SIDE, SIDE)), np.float32)
    spread = cut.std() + 1e-3
    level = (cut - cut.mean()) / spread * chance.uniform(25, 50) + chance.uniform(90, 160)
    return Image.fromarray(level.clip(0, 255).astype(np.uint8))
