"""`opsin jobs` against a server, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from opsin_server.cli import app
from support.served import Served
from support.talk import MINI, user

ROWS = [
    {"messages": [user("Which?", Image.new("RGB", (48, 48), (20 * n, 0, 0))), {"role": "assistant", "content": "7"}]}
    for n in range(12)
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--store") as served:
        yield served
        served.close()


@pytest.fixture(scope="module")
def file(server: Served) -> str:
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    return server.client().files.create(file=("a.jsonl", data), purpose="fine-tune").id


def run(server: Served, *words: str) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": None}
    return CliRunner().invoke(app, ["jobs", *words], env=environment)


def made(server: Served, file: str, epochs: int, seed: int) -> str:
    given = {"n_epochs": epochs, "batch_size": 4}
    jobs = server.client().fine_tuning.jobs
    return jobs.create(model=MINI.name, training_file=file, hyperparameters=given, seed=seed).id  # type: ignore[arg-type]


def test_a_job_is_followed_to_its_end(server: Served, file: str) -> None:
    job = made(server, file, 2, 1)
    done = run(server, "follow", job)
    assert done.exit_code == 0, done.output
    assert f"Created fine-tuning job: {job}" in done.output
    assert "The job has successfully completed" in done.output
    assert "⣿" in done.output
    listed = run(server, "list").output.splitlines()
    assert [line.split("\t")[:3] for line in listed if line.startswith(job)] == [[job, "succeeded", MINI.name]]
    shown = run(server, "show", job).output
    assert shown.startswith(f"{job}\n")
    for said in (
        "status         succeeded",
        "epochs, batch  2, 4",
        f"result         ft:{MINI.name}:opsin::",
        ":ckpt-step-6",
    ):
        assert said in shown, shown


def test_a_job_is_paused_resumed_and_cancelled(server: Served, file: str) -> None:
    job = made(server, file, 500, 2)
    assert run(server, "pause", job).output == f"{job} is paused\n"
    stopped = run(server, "follow", job)
    assert stopped.exit_code == 1
    assert "The job was paused" in stopped.output
    assert run(server, "resume", job).output == f"{job} is validating_files\n"
    assert run(server, "cancel", job).output == f"{job} is cancelled\n"
    again = run(server, "cancel", job)
    assert again.exit_code == 1
    assert f"opsin jobs: the job {job} is cancelled: it cannot be cancelled" in again.stderr


def test_a_job_is_made_of_answers_that_are_kept(server: Served) -> None:
    client = server.client()
    asked = [user("Which?", Image.new("RGB", (48, 48), (0, 20 * n, 0))) for n in range(10)]
    chats = [
        client.chat.completions.create(
            model=MINI.name, messages=[message], store=True, metadata={"topic": "greens"}, max_tokens=4
        ).choices[0]
        for message in asked
    ]
    client.chat.completions.create(model=MINI.name, messages=[user("Hello")], store=True)
    made = run(server, "create", "--model", MINI.name, "--from-stored", "metadata.topic=greens", "--epochs", "1")
    first, second = made.output.splitlines()
    assert first.endswith(" has 10 rows; 0 answers were left out")
    rows = client.files.content(first.split()[0]).text.splitlines()
    assert [json.loads(row)["messages"] for row in rows] == [
        [message, {"role": "assistant", "content": chat.message.content}]
        for message, chat in zip(asked, chats, strict=True)
    ]
    assert second.startswith("ftjob-")
    assert run(server, "follow", second.split()[0]).exit_code == 0
    none = run(server, "create", "--model", MINI.name, "--from-stored", "metadata.topic=blues")
    assert (none.exit_code, none.stderr.startswith("opsin jobs: no kept answer can be trained on")) == (1, True)
    wrong = run(server, "create", "--model", MINI.name, "--from-stored", "topic=greens")
    assert (wrong.exit_code, "write metadata.KEY=VALUE or model=NAME" in wrong.stderr) == (1, True)


def test_what_fails_is_one_sentence(server: Served) -> None:
    unknown = run(server, "show", "ftjob-none")
    assert (unknown.exit_code, unknown.stderr) == (1, "opsin jobs: Could not find fine tune: ftjob-none\n")
    nobody = run(server, "list", "--url", "http://127.0.0.1:1/v1")
    assert nobody.exit_code == 1
    assert nobody.stderr.startswith("opsin jobs: http://127.0.0.1:1/v1 does not answer: ")
    assert nobody.stderr.count("\n") == 1
