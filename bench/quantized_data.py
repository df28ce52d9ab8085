"""Rows that quantized models are calibrated on and compared with: documentation of Python's own library, and drawings.

What is calibrated on and what is held out never share a module, or a drawing.
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from PIL import Image

MINI = Path(__file__).parents[1] / "examples/mini"
CALIBRATED = ("argparse", "asyncio", "decimal", "email", "heapq", "json", "logging", "pathlib", "statistics", "tarfile")
HELD = ("collections", "difflib", "random", "string", "subprocess", "textwrap", "unittest", "zipfile")
CHARACTERS = 1800  # of a row
DRAWN, HELD_DRAWN = 20261130, 20261201  # seeds


def write_texts(file: Path, modules: Sequence[str], rows: int) -> None:
    text = "\n\n".join(found for name in modules for found in _documentation(name))
    parts = [text[at : at + CHARACTERS].strip() for at in range(0, len(text), CHARACTERS)]
    _write(file, [[_said("user", "Write documentation."), _said("assistant", part)] for part in parts[:rows]])


def write_drawings(file: Path, seed: int, rows: int) -> None:
    """What opsin-mini learned: drawings, each with some questions and answers."""
    sys.path.insert(0, str(MINI))
    from mini_opsin import curriculum, questions
    from mini_opsin.batches import draw
    from mini_opsin.fonts import find_fonts

    rng, stage, fonts = random.Random(seed), curriculum.exam(), find_fonts()
    found = []
    while len(found) < rows:
        text = len(found) % 5 in (1, 3)
        leaning = stage.leaning(text)
        kind = rng.choices(list(leaning.kinds), list(leaning.kinds.values()))[0]
        picture = draw(rng, kind, rng.choice(curriculum.WIDE if text else curriculum.LARGE), leaning, fonts)
        turns = [
            (_said("user", one.question), _said("assistant", one.answer))
            for one in questions.ask(picture, rng, leaning.tasks, 5)
        ]
        if turns:
            first, *rest = (message for turn in turns for message in turn)
            parts = [_picture(picture.pixels), {"type": "text", "text": first["content"]}]
            found.append([{"role": "user", "content": parts}, *rest])
    _write(file, found)


def _documentation(name: str) -> Iterator[str]:
    module = import_module(name)
    for one in (module, *(getattr(module, public) for public in dir(module) if not public.startswith("_"))):
        if isinstance(said := getattr(one, "__doc__", None), str):
            yield said


def _said(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


def _picture(pixels: object) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def _write(file: Path, rows: Sequence[Sequence[dict[str, object]]]) -> None:
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
