"""The clients are programs of their own, each in its language, on the worker's server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.served import Served
from support.talk import SAMPLES

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-clients/bin/python"
PROGRAMS = {".mjs": "node", ".py": str(PYTHON)}
SECONDS = 120


@pytest.fixture
def said(served: Served) -> Callable[..., dict[str, str]]:
    def run(script: str, *arguments: str) -> dict[str, str]:
        """What it printed about the picture, line by line."""
        path = HERE / script
        environment = {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none"}
        done = subprocess.run(
            [PROGRAMS[path.suffix], str(path), str(SAMPLES / "square_and_star.png"), *arguments],
            env=served.room.environment(**environment),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(line.split(": ", 1) for line in done.stdout.splitlines())

    return run
