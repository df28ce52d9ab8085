from __future__ import annotations

from pathlib import Path

import pytest

from support import quantizing


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with its tokenizer."""
    folder = tmp_path_factory.mktemp("quantize") / "base"
    quantizing.text_model(folder)
    return folder
