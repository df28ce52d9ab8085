"""What the tests of training files share: the embedded model's encoder, and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opsin_server.config import EngineConfig
from opsin_server.text.encode_prompt import PromptEncoder, read_encoder
from support import oracle, talk


@pytest.fixture(scope="session")
def encoder() -> PromptEncoder:
    return read_encoder(EngineConfig(str(talk.MINI)))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Rows, or lines of bytes, to a file."""

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
        return Image.fromarray(oracle.picture(seed, height, width))

    return picture
