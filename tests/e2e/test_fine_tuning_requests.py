"""What is asked of fine-tuning jobs: what is wrong with a file or a request is said, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from support.fine_tuning import lines, messages, over, refused, until, upload
from support.served import Served
from support.talk import MINI


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served() as served:
        yield served
        served.close()


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.client()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{}\n" * 12, "line 1: "),
        (lines(range(2)), "10"),  # rows that a file must have
        (lines(range(4)) + b"not JSON\n", "line 13: "),
    ],
)
def test_a_file_that_is_wrong_fails_its_job_with_the_line(data: bytes, words: str, client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=MINI.name, training_file=upload(client, data))
    job = until(client, job.id, over)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert words in job.error.message + " ".join(messages(client, job.id))


def test_rows_that_are_left_out_are_said(client: openai.OpenAI) -> None:
    data = lines(range(5)) + b"not JSON\n"
    job = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=upload(client, data),
        hyperparameters={"n_epochs": 1, "batch_size": 8},
        extra_body={"opsin": {"on_bad_row": "skip"}},
    )
    assert refused(lambda: client.fine_tuning.jobs.resume(job.id)).status_code == 400  # at once: it was not paused
    assert until(client, job.id, over).status == "succeeded"
    said = messages(client, job.id)
    assert "training_file: 1 rows are wrong, and left out" in said
    assert any(text.startswith("training_file: line 16: ") for text in said)


def test_what_cannot_be_is_refused_when_the_job_is_made(client: openai.OpenAI) -> None:
    train = upload(client, lines(range(4)))
    seen = client.files.create(file=("a.png", b"x"), purpose="vision").id

    def create(**changes: object) -> openai.APIStatusError:
        fields = {"model": MINI.name, "training_file": train, **changes}
        return refused(lambda: client.fine_tuning.jobs.create(**fields))  # type: ignore[arg-type]

    assert create(model="gpt-nothing").status_code == 404
    assert create(training_file="file-none").param == "training_file"  # type: ignore[attr-defined]
    assert "purpose 'vision'" in create(validation_file=seen).message
    reinforcement = create(method={"type": "reinforcement", "reinforcement": {"grader": {}}})
    assert "must be supervised or dpo" in reinforcement.message
    wandb = create(integrations=[{"type": "wandb", "wandb": {"project": "x"}}])
    assert wandb.param == "integrations[0].type"  # type: ignore[attr-defined]
    both = create(method={"type": "supervised", "reinforcement": {"grader": {}}})
    assert both.param == "method.reinforcement"  # type: ignore[attr-defined]
    many = create(metadata={str(n): "x" for n in range(17)})
    assert many.param == "metadata"  # type: ignore[attr-defined]
    assert "U+0000" in create(metadata={"a": "b\0"}).message
    assert create(suffix="a\0").param == "suffix"  # type: ignore[attr-defined]
    assert "opsin.nothing" in create(extra_body={"opsin": {"nothing": 1}}).message
    assert "n_epochs" in create(extra_body={"opsin": {"epochs": 2}}).message
    assert "--max-lora-rank" in create(extra_body={"opsin": {"lora_rank": 512}}).message
    for name, value in (("n_epochs", 0), ("n_epochs", "3"), ("learning_rate_multiplier", -1), ("batch_size", 1.5)):
        error = create(method={"type": "supervised", "supervised": {"hyperparameters": {name: value}}})
        assert (error.status_code, error.param) == (400, f"method.supervised.hyperparameters.{name}")  # type: ignore[attr-defined]
        assert "it must be 'auto', or" in error.message
    assert create(method={"type": "dpo", "supervised": {}}).param == "method.supervised"  # type: ignore[attr-defined]
    for name, value in (
        ("eval_steps", 5),
        ("early_stopping_patience", 2),
        ("freeze_vision_first_n", 99),
        ("target_modules", ["none"]),
        ("publish_as", "a@1"),
        ("publish_as", MINI.name),
        ("max_seq_length", 10**6),
    ):
        error = create(extra_body={"opsin": {name: value}})
        assert (error.status_code, error.param, error.code) == (400, f"opsin.{name}", "invalid_value")  # type: ignore[attr-defined]
    assert "publish_as" in create(extra_body={"opsin": {"promote": "manual"}}).message
    for name in ("max_seconds", "weight_decay", "lora_alpha", "warmup_steps"):
        error = create(extra_body={"opsin": {name: 10**30}})
        assert error.param == f"opsin.{name}"  # type: ignore[attr-defined]
    absent = "finetune_cross_attention_layers"
    assert absent in create(extra_body={"opsin": {absent: True}}).message
    assert refused(lambda: client.fine_tuning.jobs.retrieve("ftjob-none")).status_code == 404
    permissions = client.fine_tuning.checkpoints.permissions
    assert permissions.list("x", order="ascending").data == []
    error = refused(lambda: permissions.create("x", project_ids=["y"]))
    assert (error.status_code, error.code) == (400, "unsupported_parameter")  # type: ignore[attr-defined]


def test_a_number_without_end_is_refused_and_spoils_nothing(server: Served, client: openai.OpenAI) -> None:
    train = upload(client, lines(range(4)))
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        for number in ("1e400", "Infinity", "-Infinity"):
            body = f'{{"model": "{MINI.name}", "training_file": "{train}", "opsin": {{"max_seconds": {number}}}}}'
            answer = http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
    client.fine_tuning.jobs.list(limit=100)


def test_a_job_that_diverges_can_be_read(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=upload(client, lines(range(4))),
        hyperparameters={"n_epochs": 3, "batch_size": 4},
        extra_body={"opsin": {"lora_plus_ratio": 1000, "max_grad_norm": 0}},
    )
    until(client, job.id, over)
    assert list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    client.fine_tuning.jobs.checkpoints.list(job.id)


def test_a_request_that_is_sent_again_makes_one_job(client: openai.OpenAI) -> None:
    train = upload(client, lines(range(4)))

    def create(key: str | None = None, **changes: object) -> FineTuningJob:
        headers = {} if key is None else {"Idempotency-Key": key}
        fields = {"model": MINI.name, "training_file": train, **changes}
        return client.fine_tuning.jobs.create(**fields, extra_headers=headers)  # type: ignore[arg-type]

    first = create()
    assert create().id == first.id
    others = [create(seed=1), create("a", seed=1), create("b", seed=1)]
    assert len({first.id, *(job.id for job in others)}) == 4
    assert create("a", seed=1).id == others[1].id
    assert refused(lambda: create("a", seed=2)).status_code == 400
    for job in (first, *others):
        if not over(client.fine_tuning.jobs.retrieve(job.id)):
            client.fine_tuning.jobs.cancel(job.id)
    mine = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert mine[:4] == [job.id for job in (first, *others)][::-1]
    with_metadata = create(metadata={"a": "b"})
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"a": "b"})] == [with_metadata.id]
    without = [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
    assert first.id in without
    assert with_metadata.id not in without
    assert refused(lambda: client.fine_tuning.jobs.list(extra_query={"metadata": "a"})).status_code == 400
    assert refused(lambda: client.fine_tuning.jobs.list(extra_query={"metadata[a": "b"})).status_code == 400
    assert refused(lambda: client.fine_tuning.jobs.cancel(first.id)).status_code == 400
    client.fine_tuning.jobs.cancel(with_metadata.id)
