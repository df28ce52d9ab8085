"""docs/adapters.md, run as a reader runs it: from the first block to the last, beside the server that it starts."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import Room, Served
from support.snippets import Block, blocks

ROOT = Path(__file__).parents[2]
DOCUMENTED = "http://127.0.0.1:8000"
BLOCKS = blocks(ROOT / "docs/adapters.md")
SERVE = re.compile(r"^(?:\.venv/bin/)?opsin serve (.*)$", re.MULTILINE)


@pytest.fixture
def room() -> Iterator[Room]:
    """With what a clone has beside what the blocks make."""
    room = Room()
    for name in ("examples", "server"):
        (room.work / name).symlink_to(ROOT / name)
    yield room
    room.remove()


def run(block: Block, room: Room, url: str) -> str:
    """What it prints."""
    code = block.code.replace(DOCUMENTED, url).replace(".venv/bin", str(Path(sys.executable).parent))
    command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    environment = room.environment(OPENAI_BASE_URL=f"{url}/v1", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=room.work, env=environment, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"line {block.line}: {done.stderr}"
    return done.stdout


def test_all_blocks_print_what_the_document_shows(room):
    """The one that starts a server is started on a free port, for all that follow."""
    server: Served | None = None
    try:
        for block in BLOCKS:
            if (serve := SERVE.search(block.code)) is not None:
                assert server is None
                server = Served(*shlex.split(serve[1]), room=room)
                continue
            block.check(run(block, room, DOCUMENTED if server is None else server.url))
    finally:
        if server is not None:
            server.discard()


def test_blocks_of_each_kind_are_there():
    assert sum(block.prints is not None for block in BLOCKS) > 8
    assert {block.language for block in BLOCKS} == {"bash", "python"}
