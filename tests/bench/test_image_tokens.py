"""The table of visual tokens in docs/models.md is what the code gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_the_table_is_not_stale(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("image_tokens", BENCH / "image_tokens.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "image_tokens", module)
    spec.loader.exec_module(module)
    text = module.PAGE.read_text()
    assert module.page(text) == text, "run: python bench/image_tokens.py --write"
