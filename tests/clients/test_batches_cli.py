"""`opsin batches` against a server, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opsin_server.cli import app
from support.served import Served
from support.talk import MINI, SAMPLES, user


def run(served: Served, *words: str) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": None}
    return CliRunner().invoke(app, ["batches", *words], env=environment)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = (SAMPLES / "rocket.png").read_bytes()
    path = tmp_path_factory.mktemp("batch") / "in.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": str(n), "method": "POST", "url": "/v1/chat/completions",
                    "body": {"model": MINI.name, "messages": [user("What is it?", picture)]},
                }
            )
            + "\n"
            for n in range(3)
        )
    )  # fmt: skip
    return path


def test_a_batch_is_created_followed_listed_and_shown(served: Served, file: Path, tmp_path: Path) -> None:
    done = run(served, "create", str(file), "--out", str(tmp_path / "out.jsonl"))
    assert done.exit_code == 0, done.output
    batch = done.output.splitlines()[0]
    assert [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == list("012")
    listed = [line.split("\t") for line in run(served, "list").output.splitlines() if line.startswith(batch)]
    assert [one[1:4] for one in listed] == [["completed", MINI.name, "3 of 3"]]
    shown = run(served, "show", batch).output
    assert shown.startswith(f"{batch}\n  status         completed\n")
    assert run(served, "follow", batch).exit_code == 0
    again = run(served, "cancel", batch)
    assert again.exit_code == 1
    assert f"opsin batches: the batch {batch} is completed: it cannot be cancelled" in again.stderr


def test_a_file_with_faults_ends_with_1_and_says_where(served: Served, file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(file.read_text() + "no line\n")
    failed = run(served, "create", str(tmp_path / "bad.jsonl"), "--follow")
    assert failed.exit_code == 1
    assert "line 4         invalid_json_line: This line is no JSON object" in failed.output
