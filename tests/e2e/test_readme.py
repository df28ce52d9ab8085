"""README.md's code blocks, run as a reader runs them. Blocks that set things up or never end are not run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.snippets import blocks

ROOT = Path(__file__).parents[2]
DOCUMENTED = "http://127.0.0.1:8000"
NOT_RUN = re.compile(r"^\s*(make|git clone|\.venv/bin/pip|docker|podman|kubectl|opsin serve)\b", re.MULTILINE)

BLOCKS = blocks(ROOT / "README.md")
RUN = [block for block in BLOCKS if not NOT_RUN.search(block.code)]


def test_the_readme_shows_curl_the_sdk_and_a_stream():
    shown = [block for block in RUN if block.prints]
    assert any("curl" in block.code for block in shown if block.language == "bash")
    python = [block.code for block in shown if block.language == "python"]
    assert any("OpenAI(" in code and "stream=True" in code for code in python)
    assert any(DOCUMENTED in block.code for block in shown)


def test_the_readme_starts_with_make_serve():
    assert any(re.search(r"^make serve\b", block.code, re.MULTILINE) for block in BLOCKS)


INVENTED = re.compile(r"(?i)(?:github|gitlab|bitbucket)\.(?:com|org)[/:]\S*opsin|(?:ghcr|docker|quay)\.io/\S*opsin")


def test_no_address_of_this_project_is_invented():
    """It has no public one: what copies and pastes from here must not lead to a stranger's."""
    tops = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "Dockerfile", "Makefile"))
    below = (path for name in ("docs", "deploy", "examples") for path in (ROOT / name).rglob("*"))
    for path in (*tops, *below):
        if path.suffix in ("", ".md", ".toml", ".yaml", ".sh", ".py") and path.is_file():
            found = INVENTED.search(path.read_text("utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.language}-line-{block.line}")
def test_a_block_prints_what_the_readme_shows(served, block):
    code = block.code.replace(DOCUMENTED, served.url).replace(".venv/bin", str(Path(sys.executable).parent))
    command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    environment = served.room.environment(OPENAI_BASE_URL=f"{served.url}/v1")  # for commands that name no server
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    block.check(done.stdout)
