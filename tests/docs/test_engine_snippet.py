"""docs/engine.md, run as a reader runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.snippets import blocks

ROOT = Path(__file__).parents[2]
RUN = [block for block in blocks(ROOT / "docs/engine.md") if block.language == "python"]


def test_there_is_something_to_run():
    assert any(block.prints for block in RUN)


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line-{block.line}")
def test_a_block_prints_what_the_document_shows(block):
    done = subprocess.run([sys.executable, "-c", block.code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    block.check(done.stdout)
