"""`opsin migrate` between two running servers, as a user runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from opsin_server.cli import app
from support.media_host import MediaHost, ok
from support.served import Served
from support.talk import image_part, png, text_part

WORDS = {(220, 30, 30): "7", (30, 180, 40): "3", (40, 40, 220): "5"}
BASE = "gpt-4o-2024-08-06"
QUESTION = "Name the colour."


def row(colour: tuple[int, int, int], shade: int, url: str | None = None) -> dict[str, Any]:
    picture = Image.new("RGB", (56, 56), tuple(min(255, value + shade) for value in colour))
    asked = {"role": "user", "content": [image_part(picture if url is None else url), text_part(QUESTION)]}
    return {"messages": [asked, {"role": "assistant", "content": WORDS[colour]}]}


def upload(client: openai.OpenAI, rows: list[dict[str, Any]], name: str) -> str:
    data = "".join(json.dumps(one) + "\n" for one in rows).encode()
    return client.files.create(file=(name, data), purpose="fine-tune").id


@pytest.fixture(scope="module")
def old() -> Iterator[Served]:
    with Served("--media-allow", "127.0.0.1", "--served-model-name", BASE) as served:
        yield served
        served.close()


@pytest.fixture(scope="module")
def new() -> Iterator[Served]:
    with Served() as served:
        yield served
        served.close()


@pytest.fixture(scope="module")
def pictures() -> Iterator[MediaHost]:
    host = MediaHost({"/red.png": ok(png(Image.new("RGB", (56, 56), next(iter(WORDS)))))})
    yield host
    host.close()


@pytest.fixture(scope="module")
def job(old: Served, pictures: MediaHost) -> str:
    """One that has succeeded; a picture of its validation file lies behind a URL."""
    client = old.client()
    red = next(iter(WORDS))
    url = pictures.url("/red.png")
    train = upload(client, [row(colour, shade) for shade in range(12) for colour in WORDS], "train.jsonl")
    valid = upload(client, [*(row(colour, 20) for colour in WORDS), row(red, 0, url)], "valid.jsonl")
    made = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=train,
        validation_file=valid,
        suffix="colours",
        metadata={"team": "sight"},
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 8}}},
        extra_body={"opsin": {"learning_rate": 2e-3}},
    )
    followed = run("jobs", old, "follow", made.id)
    assert followed.exit_code == 0, followed.output
    return made.id


def run(command: str, server: Served, *words: str, key: str = "none") -> Result:
    environment = {"COLUMNS": "240", "NO_COLOR": "1", "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": key}
    return CliRunner().invoke(app, [command, *words], env=environment)


def test_a_house_is_moved(old: Served, new: Served, job: str, tmp_path: Path, pictures: MediaHost) -> None:
    folder = tmp_path / "saved"
    taken = run(
        "migrate", new, "snapshot", "--out", str(folder), "--from", old.url + "/v1", "--allow-host", "127.0.0.1"
    )
    assert taken.exit_code == 0, taken.output
    assert "1 jobs, 3 files, 1 pictures behind URLs, 4 answers of the old models" in taken.output
    again = run("migrate", new, "snapshot", "--out", str(folder), "--from", old.url + "/v1")
    assert again.output == taken.output
    old_model = json.loads((folder / "jobs" / job / "job.json").read_text())["fine_tuned_model"]
    assert (folder / "jobs" / job / "metrics.csv").read_text().startswith("step,")
    dry = run("migrate", new, "create", str(folder))
    assert dry.exit_code == 0, dry.output
    assert dry.output.splitlines()[1].split("\t") == [job, "supervised", "36", "4", "40", "0", old_model, "yes"]
    assert "1 jobs would be made" in dry.output
    assert new.client().fine_tuning.jobs.list().data == []
    pictures.close()  # what lies behind the URLs is gone by now
    done = run("migrate", new, "create", str(folder), "--run", "--same-hyperparameters", "--alias-base")
    assert done.exit_code == 0, done.output
    made = re.findall(rf"{job} -> (ftjob-\w+)", done.output)
    assert len(made) == 1
    assert f"{BASE} means this server's model" in done.output
    client = new.client()
    followed = run("jobs", new, "follow", made[0])
    assert followed.exit_code == 0, followed.output
    there = client.fine_tuning.jobs.retrieve(made[0])
    assert there.metadata == {"team": "sight", "migrated_from": job}
    assert (there.seed, there.hyperparameters.n_epochs, there.hyperparameters.batch_size) == (3, 6, 8)
    assert old_model in [model.id for model in client.models.list()]
    twice = run("migrate", new, "create", str(folder), "--run")
    assert f"is made: {made[0]}" in twice.output
    assert len(client.fine_tuning.jobs.list().data) == 1
    compared = run("migrate", new, "compare", str(folder))
    assert compared.exit_code == 0, compared.output
    lines = [line for line in compared.output.splitlines() if line.startswith("line ")]
    assert len(lines) == 4
    assert "questions          4" in compared.output
    page = (folder / "comparison.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 4
    assert "that was not saved" not in page
    said = client.chat.completions.create(
        model=old_model, messages=row(next(iter(WORDS)), 5)["messages"][:1], max_tokens=4, temperature=0
    )
    assert said.choices[0].message.content
