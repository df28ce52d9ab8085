"""Fine-tuning jobs through OpenAI's own SDK: from a file of rows to a model that answers."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from tensorboardX.proto.event_pb2 import Event

from support.fine_tuning import (
    COLOURS,
    FAST,
    QUESTION,
    WORDS,
    answers,
    lines,
    messages,
    over,
    picture,
    refused,
    until,
    upload,
)
from support.served import Room, Served, wait_for
from support.talk import MINI, user
from support.webhook_host import webhook_host


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--webhook-allow", "127.0.0.1") as served:
        yield served
        served.close()


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.client()


def test_a_job_from_its_file_to_a_model_that_answers(server: Served, client: openai.OpenAI) -> None:
    train, valid = upload(client, lines(range(16))), upload(client, lines(range(100, 103)), "valid.jsonl")
    job = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=train,
        validation_file=valid,
        suffix="colours of things",
        seed=7,
        metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 8}}},
        extra_body={"opsin": FAST},
    )
    assert job.status == "validating_files"
    assert (job.training_file, job.validation_file, job.seed, job.metadata) == (train, valid, 7, {"who": "me"})
    chatted, shown = False, 0
    while not over(job):
        time.sleep(0.05)
        job = client.fine_tuning.jobs.retrieve(job.id)
        found = client.fine_tuning.jobs.checkpoints.list(job.id).data
        if found and not over(job) and not chatted:
            losses = [value for name, value in server.metrics().items() if name == f'opsin_job_loss{{job="{job.id}"}}']
            assert all(0 <= loss < 10 for loss in losses)
            shown += len(losses)
            said = answers(client, found[0].fine_tuned_model_checkpoint)
            chatted = client.fine_tuning.jobs.retrieve(job.id).status == "running" and len(said) == 3
    assert job.status == "succeeded", job.error
    assert chatted, "a checkpoint answers while the job goes on"
    assert shown
    assert job.fine_tuned_model == f"ft:{MINI.name}:opsin:colours-of-things:{job.id.removeprefix('ftjob-')[:8]}"
    assert job.hyperparameters.n_epochs == 5
    assert job.hyperparameters.batch_size == 8
    assert job.trained_tokens
    assert job.finished_at
    assert answers(client, job.fine_tuned_model) == list(WORDS.values())
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    check_events(client, job, steps=30)
    check_checkpoints(client, job)
    pieces = 'opsin_training_pieces_total{engine="0",kind="norm"}'
    wait_for(lambda: server.metrics().get(pieces) == 30)  # (an idle engine tells its counts once a second)
    counted = server.metrics()
    assert counted['opsin_training_seconds_total{engine="0"}'] > 0
    assert not [name for name in counted if name.startswith("opsin_job_loss{")]
    assert counted["opsin_training_steps_total"] == 30
    assert counted['opsin_jobs_ended_total{status="succeeded"}'] == 1
    assert counted['opsin_jobs{state="running"}'] == 0
    assert counted["opsin_trained_tokens_total"] > 30 * 8
    (file,) = job.result_files
    assert client.files.retrieve(file).purpose == "fine-tune-results"
    plain = client.files.content(file, extra_headers={"Accept": "text/csv"}).read()
    assert base64.b64decode(client.files.content(file).read()) == plain
    kind = client.files.with_raw_response.content(file, extra_headers={"Accept": "text/csv"}).headers["content-type"]
    assert kind.startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(plain.decode())))
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert [bool(row["full_valid_loss"]) for row in rows] == [step % 6 == 0 for step in range(1, 31)]


def check_events(client: openai.OpenAI, job: FineTuningJob, steps: int) -> None:
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=7))  # (in pages)
    assert len({event.id for event in events}) == len(events)
    assert [event.created_at for event in events] == sorted((event.created_at for event in events), reverse=True)
    said = [event.message for event in events]
    assert said[0] == "The job has successfully completed"
    assert said[1] == f"New fine-tuned model created: {job.fine_tuned_model}"
    assert said[-1] == f"Created fine-tuning job: {job.id}"
    numbers = [event.data for event in events if event.type == "metrics"]
    trained = [one["step"] for one in numbers if "train_loss" in one]  # type: ignore[index, operator]
    assert trained == list(range(steps, 0, -1))
    assert all(one["total_steps"] == steps for one in numbers)  # type: ignore[index]


def check_checkpoints(client: openai.OpenAI, job: FineTuningJob) -> None:
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in found] == [30, 24, 18]
    for one in found:
        assert one.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-{one.step_number}"
        assert one.metrics.full_valid_loss is not None
        assert one.metrics.train_loss is not None
    assert answers(client, found[0].fine_tuned_model_checkpoint) == list(WORDS.values())


def test_auto_is_resolved_and_reported(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=MINI.name, training_file=upload(client, lines(range(4))))
    assert job.hyperparameters.n_epochs == "auto"
    job = until(client, job.id, lambda job: job.status == "running")
    assert job.estimated_finish is None or job.estimated_finish >= job.created_at
    assert job.hyperparameters.n_epochs == 25
    assert job.hyperparameters.batch_size == 1
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert until(client, job.id, over).status == "cancelled"
    assert "The job was cancelled" in messages(client, job.id)


def test_how_a_job_ended_is_told_to_a_webhook(client: openai.OpenAI) -> None:
    kinds = ["fine_tuning.job.succeeded", "fine_tuning.job.failed"]
    with webhook_host() as host:
        endpoint = client.webhooks.create(name="training", url=host.url, event_types=kinds)  # type: ignore[arg-type]
        fast = {"n_epochs": 1, "batch_size": 8}
        good = client.fine_tuning.jobs.create(
            model=MINI.name,
            training_file=upload(client, lines(range(4))),
            method={"type": "supervised", "supervised": {"hyperparameters": fast}},  # type: ignore[typeddict-item]
        )
        bad = client.fine_tuning.jobs.create(model=MINI.name, training_file=upload(client, b"no rows"))
        told = {}
        for received in host.wait_for(2, seconds=90):
            event = client.webhooks.unwrap(received.body, received.headers, secret=endpoint.signing_secret)
            told[event.type] = event.data.id  # type: ignore[union-attr]
        client.webhooks.delete(endpoint.id)
    assert told == {kinds[0]: good.id, kinds[1]: bad.id}


def test_preferences_are_learned(client: openai.OpenAI) -> None:
    rows = [
        {
            "input": {"messages": [user(QUESTION, picture(colour, seed))]},
            "preferred_output": [{"role": "assistant", "content": WORDS[colour]}],
            "non_preferred_output": [{"role": "assistant", "content": "I cannot say."}],
        }
        for seed in range(4)
        for colour in COLOURS
    ]
    file = upload(client, "".join(json.dumps(row) + "\n" for row in rows).encode())
    given = {"n_epochs": 2, "batch_size": 4, "beta": 0.2}
    method = {"type": "dpo", "dpo": {"hyperparameters": given}}
    job = client.fine_tuning.jobs.create(model=MINI.name, training_file=file, method=method)  # type: ignore[arg-type]
    job = until(client, job.id, over)
    assert job.status == "succeeded", job.error
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    other = client.fine_tuning.jobs.create(model=MINI.name, training_file=file)
    other = until(client, other.id, over)
    assert other.error is not None
    assert "preference rows" in other.error.message


def test_a_job_that_takes_too_long_has_failed(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=upload(client, lines(range(4))),
        hyperparameters={"n_epochs": 1000, "batch_size": 4},
        extra_body={"opsin": {"max_seconds": 1.5}},
    )
    failed = until(client, job.id, over)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == (
        "time_limit_exceeded",
        "training took more than 1.5 seconds",
    )
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert len(answers(client, checkpoints[0].fine_tuned_model_checkpoint)) == 3


def test_a_job_that_stops_early_says_so(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=upload(client, lines(range(4))),
        validation_file=upload(client, lines(range(100, 102))),
        hyperparameters={"n_epochs": 100, "batch_size": 12},
        extra_body={"opsin": {"early_stopping_patience": 1, "eval_steps": 1, "learning_rate": 0.1}},
    )
    job = until(client, job.id, over)
    assert job.status == "succeeded", job.error
    (said,) = [text for text in messages(client, job.id) if "stopped early" in text]
    stopped = re.fullmatch(r"Training stopped early at step (\d+) of 100: .* no better for 1 evaluations", said)
    assert stopped is not None
    best = int(stopped[1]) - 1
    assert f"The model is as it was at step {best}, where its validation loss was the lowest" in messages(
        client, job.id
    )
    (chosen,) = [one for one in client.fine_tuning.jobs.checkpoints.list(job.id) if one.step_number == best]
    roots = {one.id: one.model_dump()["root"] for one in client.models.list()}
    assert roots[chosen.fine_tuned_model_checkpoint] == roots[job.fine_tuned_model or ""]


def test_the_numbers_of_a_job_are_written_for_tensorboard(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Served("--data-dir", str(data), storage=()) as served:
        client = served.client()
        job = client.fine_tuning.jobs.create(
            model=MINI.name,
            training_file=upload(client, lines(range(4))),
            hyperparameters={"n_epochs": 2, "batch_size": 4},
            integrations=[{"type": "tensorboard"}],  # type: ignore[list-item, typeddict-item]
        )
        assert until(client, job.id, over).status == "succeeded"
        told = {
            event.data["step"]: event.data["train_loss"]
            for event in client.fine_tuning.jobs.list_events(job.id)
            if event.type == "metrics"
        }
        served.close()
    (file,) = (data / "tensorboard" / job.id).iterdir()
    assert told == pytest.approx(scalars(file.read_bytes(), "train_loss"), rel=1e-5)


def scalars(data: bytes, tag: str) -> dict[int, float]:
    """Of an event file: records of a length, a checksum, bytes, and a checksum."""
    found = {}
    while data:
        (length,) = struct.unpack_from("<Q", data)
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            if value.tag == tag:
                found[event.step] = value.simple_value
        data = data[12 + length + 4 :]
    return found


def test_a_fine_tuned_model_is_trained_on_from(client: openai.OpenAI) -> None:
    train = upload(client, lines(range(16)))
    given = {"n_epochs": 2, "batch_size": 8}

    def create(model: str, seed: int, **own: object) -> FineTuningJob:
        return client.fine_tuning.jobs.create(
            model=model,
            training_file=train,
            seed=seed,
            hyperparameters=given,  # type: ignore[arg-type]
            extra_body={"opsin": {"learning_rate": 2e-3, **own}},
        )

    first = until(client, create(MINI.name, 1, lora_rank=8, finetune_vision_layers=False).id, over)
    assert first.status == "succeeded", first.error
    name = first.fine_tuned_model or ""
    assert "opsin.lora_rank follows from" in refused(lambda: create(name, 2, lora_rank=4)).message
    assert "opsin.finetune_mlp_modules" in refused(lambda: create(name, 2, finetune_mlp_modules=False)).message
    again = create(name, 2)
    client.delete(f"/adapters/{name}", cast_to=object)  # the job has what it reads
    second = until(client, again.id, over)
    assert second.status == "succeeded", second.error
    assert second.model == name
    assert f"Training goes on from {name}" in messages(client, second.id)
    losses = [
        [event.data["train_loss"] for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"][
            -1
        ]
        for job in (first, second)
    ]
    assert losses[1] < 0.5 * losses[0]  # its first step begins where the other ended
    assert refused(lambda: create("ft:nothing", 3)).status_code == 404


def test_a_job_goes_on_after_a_pause_and_after_a_start_of_the_server(tmp_path: Path) -> None:
    """It is killed while the job runs; every step is told once, and the weights are those of a run without a break."""
    room, data = Room(), str(tmp_path / "data")
    fields = {"seed": 3, "hyperparameters": {"n_epochs": 6, "batch_size": 4}}

    def step(client: openai.OpenAI, job_id: str) -> int:
        events = client.fine_tuning.jobs.list_events(job_id, limit=100)
        return max((event.data["step"] for event in events if event.type == "metrics"), default=0)  # type: ignore[index, operator]

    with Served("--data-dir", data, storage=(), room=room) as served:
        client = served.client()
        train = upload(client, lines(range(8)))
        job = client.fine_tuning.jobs.create(
            model=MINI.name, training_file=train, extra_body={"opsin": {"save_steps": 5}}, **fields
        )  # type: ignore[arg-type]
        until(client, job.id, lambda found: step(client, found.id) >= 7)
        paused = client.fine_tuning.jobs.pause(job.id)
        assert paused.status == "paused"
        time.sleep(1)
        at = step(client, job.id)
        client.files.delete(train)  # the job has what it needs
        assert client.fine_tuning.jobs.resume(job.id).status == "validating_files"
        until(client, job.id, lambda found: step(client, found.id) >= at + 6)
        served.signal_all(signal.SIGKILL)
        served.process.wait(20)
    with Served("--data-dir", data, storage=()) as served:
        client = served.client()
        done = until(client, job.id, over)
        assert done.status == "succeeded", done.error
        told = [
            event.data["step"]
            for event in client.fine_tuning.jobs.list_events(job.id, limit=100)
            if event.type == "metrics"
        ]  # type: ignore[index]
        assert told == list(range(36, 0, -1))
        again = client.fine_tuning.jobs.create(
            model=MINI.name,
            training_file=upload(client, lines(range(8))),
            extra_body={"opsin": {"save_steps": 5}},
            **fields,
        )  # type: ignore[arg-type]
        again = until(client, again.id, over)
        versions = [client.get(f"/adapters/{done.fine_tuned_model}", cast_to=object) for done in (done, again)]
        assert versions[0]["digest"] == versions[1]["digest"]  # type: ignore[index]
        served.close()


def test_the_legacy_routes_do_the_same(server: Served, client: openai.OpenAI) -> None:
    """As curl asks them."""
    train = upload(client, lines(range(4)))
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        body = {"training_file": train, "n_epochs": 2, "batch_size": 4, "suffix": "old"}
        weighted = http.post("/v1/fine-tunes", json={**body, "prompt_loss_weight": 0.01}).json()["error"]
        assert (weighted["param"], weighted["code"]) == ("prompt_loss_weight", "unsupported_parameter")
        assert "answers alone are learned here, which is the weight 0" in weighted["message"]
        made = http.post("/v1/fine-tunes", json={**body, "prompt_loss_weight": 0}).json()
        assert (made["object"], made["status"], made["hyperparams"]["n_epochs"]) == ("fine-tune", "pending", 2)
        assert [file["id"] for file in made["training_files"]] == [train]
        stream = http.get(f"/fine_tunes/{made['id']}/events", params={"stream": "true"})
        assert stream.headers["content-type"].startswith("text/event-stream")
        said = [line.removeprefix("data: ") for line in stream.text.splitlines() if line]
        assert said[-1] == "[DONE]"
        events = [json.loads(line) for line in said[:-1]]
        assert {event["object"] for event in events} == {"fine-tune-event"}
        assert events[0]["message"] == f"Created fine-tuning job: {made['id']}"
        assert events[-1]["message"] == "The job has successfully completed"
        done = http.get(f"/v1/fine_tunes/{made['id']}").json()
        assert done["status"] == "succeeded"
        assert done["fine_tuned_model"].startswith(f"ft:{MINI.name}:opsin:old:")
        assert [file["purpose"] for file in done["result_files"]] == ["fine-tune-results"]
        assert done["events"] == http.get(f"/fine-tunes/{made['id']}/events").json()["data"] == events
        assert made["id"] in [one["id"] for one in http.get("/v1/fine_tunes").json()["data"]]
        assert http.post(f"/v1/fine_tunes/{made['id']}/cancel").status_code == 400
        wrong = http.post("/v1/fine-tunes", json={"training_file": train, "compute_classification_metrics": True})
        assert wrong.status_code == 400
        assert http.get("/v1/fine_tunes/ft-none/events", params={"stream": "true"}).status_code == 404


def test_a_model_is_published_under_a_name_that_clients_have(client: openai.OpenAI) -> None:
    """At once, only where it is better, or by hand; and as what an alias means."""
    train, valid = upload(client, lines(range(8))), upload(client, lines(range(100, 102)))

    def trained(**options: object) -> list[str]:
        job = client.fine_tuning.jobs.create(
            model=MINI.name,
            training_file=train,
            validation_file=valid,
            seed=len(models),
            hyperparameters={"n_epochs": 1, "batch_size": 8},
            extra_body={"opsin": options},
        )
        job = until(client, job.id, over)
        assert job.status == "succeeded", job.error
        models.append(str(job.fine_tuned_model))
        return messages(client, job.id)

    def digest(name: str) -> object:
        return client.get(f"/adapters/{name}", cast_to=object)["digest"]  # type: ignore[index]

    models: list[str] = []
    assert any("ours means the new model now" in text for text in trained(publish_as="ours", **FAST))
    assert digest("ours") == digest(models[0])
    slow = {"learning_rate": 1e-6}
    said = trained(publish_as="ours", promote="if_better", **slow)
    assert any(re.search(r"ours means what it did before: validation loss [\d.]+ against", text) for text in said)
    assert digest("ours") == digest(models[0])
    trained(publish_as="ours", promote="manual", **FAST)
    assert digest("ours") == digest(models[0])
    client.post("/aliases", body={"alias": "gpt-4o-ours", "target": MINI.name}, cast_to=object)
    trained(publish_as="gpt-4o-ours", **FAST)
    alias = client.get("/aliases/gpt-4o-ours", cast_to=object)
    assert alias["target"] == models[-1]  # type: ignore[index]
    error = refused(
        lambda: client.fine_tuning.jobs.create(
            model=MINI.name, training_file=train, extra_body={"opsin": {"publish_as": "x", "promote": "if_better"}}
        )
    )
    assert "needs a validation_file" in error.message
