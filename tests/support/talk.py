"""Pictures and messages as OpenAI's clients send them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

import opsin_server

MODEL_NAME = "opsin-mini"
MODELS = Path(opsin_server.__file__).parent / "models"
MINI = MODELS / "opsin-mini"
SAMPLES = MODELS / "samples"
GALLERY: list[dict[str, Any]] = json.loads((SAMPLES / "samples.json").read_text())


def sample(name: str) -> Image.Image:
    return Image.open(SAMPLES / name).convert("RGB")


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes | Image.Image, mime: str = "image/png") -> str:
    data = data if isinstance(data, bytes) else png(data)
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(source: bytes | str | Image.Image) -> dict[str, Any]:
    """A URL as it is; bytes and pictures as a data URL."""
    url = source if isinstance(source, str) else data_url(source)
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: str | bytes | Image.Image) -> dict[str, Any]:
    """Strings are text; a single one stands for itself."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "user", "content": parts[0]}
    return {"role": "user", "content": [text_part(p) if isinstance(p, str) else image_part(p) for p in parts]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": text}


def gallery_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [user(*((SAMPLES / name).read_bytes() for name in row["files"]), row["question"])]
