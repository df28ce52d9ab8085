"""docs/from-openai.md, run word by word between two servers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.served import Room, Served
from support.snippets import Block, blocks
from support.talk import user

ROOT = Path(__file__).parents[2]
BLOCKS = blocks(ROOT / "docs/from-openai.md")
THERE, HERE = "https://api.openai.com/v1", "http://127.0.0.1:8000"
SERVE = re.compile(r"^\.venv/bin/opsin serve --port 8000$", re.MULTILINE)
OLD = "gpt-4o-2024-08-06"
WORDS = {(220, 30, 30): "7", (30, 180, 40): "3", (40, 40, 220): "5"}


def lines(shades: range) -> bytes:
    rows = [
        {
            "messages": [
                user("Name the colour.", Image.new("RGB", (56, 56), tuple(min(255, c + shade) for c in colour))),
                {"role": "assistant", "content": word},
            ]
        }
        for shade in shades
        for colour, word in WORDS.items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def account() -> Iterator[Served]:
    """A server under an old name, with a job that has succeeded."""
    with Served("--served-model-name", OLD) as served:
        client = served.client()
        train, valid = (
            client.files.create(file=(name, data), purpose="fine-tune").id
            for name, data in (("train.jsonl", lines(range(12))), ("valid.jsonl", lines(range(20, 21))))
        )
        job = client.fine_tuning.jobs.create(
            model=OLD,
            training_file=train,
            validation_file=valid,
            suffix="colours",
            hyperparameters={"n_epochs": 1, "batch_size": 8},
        )
        url = f"{served.url}/v1"
        subprocess.run(
            [str(Path(sys.executable).parent / "opsin"), "jobs", "follow", job.id, "--url", url],
            env=served.room.environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )
        yield served
        served.close()


def run(block: Block, room: Room, there: str, here: str) -> str:
    code = block.code.replace(THERE, there).replace(HERE, here).replace(".venv/bin", str(Path(sys.executable).parent))
    command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    environment = room.environment(OPENAI_BASE_URL=f"{here}/v1", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=room.work, env=environment, timeout=180, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"line {block.line}: {done.stderr}"
    return done.stdout


def test_all_blocks_print_what_the_document_shows(account: Served) -> None:
    room = Room()
    server: Served | None = None
    try:
        for block in BLOCKS:
            if SERVE.search(block.code) is not None:
                server = Served(*shlex.split("--max-loras 4"), room=room)
                continue
            block.check(run(block, room, f"{account.url}/v1", HERE if server is None else server.url))
    finally:
        if server is not None:
            server.discard()
        room.remove()
    assert server is not None
    assert sum(block.prints is not None for block in BLOCKS) == 5
