"""OpenAI's SDK and batches: the answers of the chat route, in files; and what is wrong is told with its line."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from support.served import Room, Served, wait_for
from support.snippets import blocks
from support.talk import MINI, SAMPLES, image_part, sample, text_part

ROOT = Path(__file__).parents[2]
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
PICTURES = ("square_and_star.png", "dog_and_pizza.png", "rocket.png")


def lines(bodies: list[dict[str, Any]]) -> bytes:
    common = {"method": "POST", "url": ENDPOINT}
    return b"".join(
        json.dumps({"custom_id": f"id {n}", **common, "body": {"model": MINI.name, "temperature": 0, **body}}).encode()
        + b"\n"
        for n, body in enumerate(bodies)
    )


def ask(part: dict[str, Any], question: str = "Describe the picture.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, text_part(question)]}]}


def create(client: openai.OpenAI, data: bytes, **options: Any) -> Batch:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **options
    )  # fmt: skip


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    return wait_for(
        lambda: batch if (batch := client.batches.retrieve(batch_id)).status in ENDED else None, 120, "it goes on"
    )


def content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_of_pictures_is_answered_as_the_route_answers_it(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=(name, (SAMPLES / name).read_bytes()), purpose="vision").id for name in PICTURES]
    parts = [image_part(sample(name)) for name in PICTURES]
    parts += [{"type": "file", "file": {"file_id": file_id}} for file_id in ids]
    bodies = [ask(part) for part in parts] + [ask(parts[0]) | {"temperature": 7}, ask(parts[0]) | {"stream": True}]
    batch = create(
        client, lines(bodies), metadata={"a": "b"}, output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (batch.object, batch.status, batch.endpoint, batch.metadata) == ("batch", "validating", ENDPOINT, {"a": "b"})
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = ended(client, batch.id)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (8, 6, 2)
    assert batch.model == MINI.name
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    output, errors = content(client, batch.output_file_id), content(client, batch.error_file_id)
    assert [line["custom_id"] for line in output] == [f"id {n}" for n in range(6)]
    said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in output]
    chats = [client.chat.completions.create(model=MINI.name, temperature=0, **ask(part)) for part in parts]  # type: ignore[call-overload]
    assert said == [chat.choices[0].message.content for chat in chats]
    assert [(line["response"]["status_code"], line["error"]) for line in output] == [(200, None)] * 6
    assert [line["response"]["body"]["error"]["param"] for line in errors] == ["temperature", "stream"]
    assert [line["response"]["status_code"] for line in errors] == [400, 400]
    usage = batch.usage
    assert usage is not None
    assert usage.output_tokens == sum(line["response"]["body"]["usage"]["completion_tokens"] for line in output)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    kept = client.files.retrieve(batch.output_file_id or "")
    assert (kept.purpose, kept.expires_at) == ("batch_output", kept.created_at + 3600)
    assert batch.output_file_id in {file.id for file in client.files.list(purpose="batch_output")}


def test_a_batch_of_responses_is_answered_as_the_route_answers_it(client: openai.OpenAI) -> None:
    bodies = [{"input": "What is there?"}, {"input": "Hello!", "stream": True}]
    data = lines(bodies).replace(ENDPOINT.encode(), b"/v1/responses")
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    batch = ended(client, batch.id)
    (line,), (wrong,) = content(client, batch.output_file_id), content(client, batch.error_file_id)
    made = client.responses.create(model=MINI.name, temperature=0, input="What is there?")
    assert line["response"]["body"]["output"][0]["content"][0]["text"] == made.output_text
    assert wrong["response"]["body"]["error"]["param"] == "stream"


def test_a_batch_of_embeddings_is_answered_as_the_route_answers_it(client: openai.OpenAI) -> None:
    texts = ["A blue square.", "A dog and a pizza."]
    data = lines([{"input": text} for text in texts]).replace(ENDPOINT.encode(), b"/v1/embeddings")
    data = data.replace(b'"temperature": 0, ', b"")
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    output = content(client, ended(client, batch.id).output_file_id)
    made = client.embeddings.create(model=MINI.name, input=texts, encoding_format="float")
    assert [line["response"]["body"]["data"][0]["embedding"] for line in output] == [
        pytest.approx(one.embedding, abs=1e-5) for one in made.data
    ]


def test_a_batch_of_raw_prompts_is_answered_as_the_route_answers_it(client: openai.OpenAI) -> None:
    data = lines([{"prompt": ["What is", "A red"], "max_tokens": 8}]).replace(ENDPOINT.encode(), b"/v1/completions")
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    (line,) = content(client, ended(client, batch.id).output_file_id)
    made = client.completions.create(model=MINI.name, prompt=["What is", "A red"], max_tokens=8, temperature=0)
    assert [choice["text"] for choice in line["response"]["body"]["choices"]] == [one.text for one in made.choices]


def test_what_is_wrong_with_a_file_or_a_request_is_told(client: openai.OpenAI) -> None:
    good = lines([ask(text_part("Hello"))])
    bad = ended(client, create(client, good + b"no line\n" + good).id)
    assert bad.status == "failed"
    assert bad.errors is not None
    faults = [(fault.line, fault.code, fault.param) for fault in bad.errors.data or []]
    assert faults == [(2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id")]
    unknown = ended(client, create(client, good.replace(MINI.name.encode(), b"nobody")).id)
    assert unknown.errors is not None
    assert [(fault.line, fault.code) for fault in unknown.errors.data or []] == [(1, "model_not_found")]
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled") as late:
        client.batches.cancel(bad.id)
    assert late.value.code == "invalid_state"
    file = client.files.create(file=("in.jsonl", good), purpose="user_data").id
    for changes, param in (
        ({"endpoint": "/v1/moderations"}, "endpoint"), ({"completion_window": "1h"}, "completion_window"),
        ({}, "input_file_id"), ({"input_file_id": "file-none"}, "input_file_id"),
    ):  # fmt: skip
        given: Any = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h"} | changes
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(**given)
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    made = [batch.id for batch in client.batches.list(limit=1)]  # page by page
    assert made[:2] == [unknown.id, bad.id]


def test_a_batch_that_is_cancelled_keeps_what_was_answered(client: openai.OpenAI) -> None:
    batch = create(client, lines([ask(image_part(sample("rocket.png")), f"What is {n}?") for n in range(300)]))
    wait_for(lambda: (c := client.batches.retrieve(batch.id).request_counts) and c.completed, 60)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    done, left = content(client, batch.output_file_id), content(client, batch.error_file_id)
    assert len(done) == batch.request_counts.completed < 300
    assert {line["error"]["code"] for line in left} == {"batch_cancelled"}
    assert sorted(int(line["custom_id"][3:]) for line in (*done, *left)) == list(range(300))


def test_the_example_prints_what_the_document_shows(served: Served) -> None:
    block = blocks(ROOT / "docs/batches.md")[0]
    code = block.code.replace("http://127.0.0.1:8000", served.url)
    environment = served.room.environment()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    block.check(done.stdout)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_batch_of_a_server_that_is_killed_goes_on(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """kill -9 of a whole server, again and again; between two lives nothing that was counted is lost."""
    rng, room, seen, kills = random.Random(0), Room(), 0, 0
    arguments = ("--data-dir", str(tmp_path / "data"))
    batch_id = ""
    data = lines([ask(image_part(sample(PICTURES[n % 3])), f"What is {n}?") for n in range(3000)])
    try:
        while True:
            served = Served(*arguments, storage=(), room=room)
            client = served.client()
            batch_id = batch_id or create(client, data).id
            batch = client.batches.retrieve(batch_id)
            assert batch.request_counts is not None
            assert batch.request_counts.completed >= seen
            if batch.status == "completed":
                break
            end = time.monotonic() + rng.uniform(0.1, 2.0)
            while time.monotonic() < end:
                counts = client.batches.retrieve(batch_id).request_counts
                seen = seen if counts is None else counts.completed
                time.sleep(0.05)
            served.signal_all(signal.SIGKILL)
            served.process.wait(20)
            kills += 1
        output = content(client, batch.output_file_id)
        served.signal_all(signal.SIGTERM)
        served.process.wait(30)
    finally:
        room.remove()
    assert [line["custom_id"] for line in output] == [f"id {n}" for n in range(3000)]
    assert kills > 5
    record_property("result", f"{kills} kills, {len(output):,} lines: nothing lost, nothing twice")
