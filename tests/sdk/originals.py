"""A file, an upload with one part, a job that succeeded, a batch that is completed, and answers that are kept, made
over the API: what the placeholders are copies of. And the models that the SDK's tests ask for, as names of the one
here."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx
import openai

from support.served import PLAIN, wait_for

MODEL = "gpt-4o-mini"  # as the SDK's tests of jobs call it
ALIASES = ("gpt-6-astra", "gpt-3.5-turbo-instruct", "text-embedding-3-small", "model")  # and its other tests
ROW = {"messages": [{"role": "user", "content": "Count to three."}, {"role": "assistant", "content": "1 2 3"}]}
ROWS = 10  # the least that a job takes
DATA = b"Example data"
INPUT = {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"model": MODEL, "input": "Hello!"}}
SECONDS = 120  # for what runs by itself to end


@dataclass(frozen=True)
class Originals:
    """Their ids."""

    file: str
    upload: str
    part: str
    job: str
    batch: str
    batch_file: str
    chat: str
    response: str
    webhook: str


def made(url: str, hook_url: str) -> Originals:
    """url: of the API, with its /v1. hook_url: where a webhook is listened to."""
    with openai.OpenAI(base_url=url, api_key="none", http_client=httpx.Client(**PLAIN)) as client:
        file = client.files.create(file=("train.jsonl", (json.dumps(ROW) + "\n").encode() * ROWS), purpose="fine-tune")
        upload = client.uploads.create(bytes=len(DATA), filename="filename", mime_type="mime_type", purpose="user_data")
        part = client.uploads.parts.create(upload_id=upload.id, data=DATA)
        job = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=file.id,
            validation_file=file.id,
            metadata={"foo": "string"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        )
        input_file = client.files.create(file=("batch.jsonl", json.dumps(INPUT).encode()), purpose="batch")
        batch = client.batches.create(
            completion_window="24h", endpoint=INPUT["url"], input_file_id=input_file.id, metadata={"foo": "string"}
        )
        hook = client.webhooks.create(name="name", url=hook_url, event_types=["batch.completed"])
        messages, labels = [{"role": "assistant", "content": "Hello!"}], {"foo": "string"}  # the type knows no others
        goes_on = {"continue_final_message": True}
        chat = client.chat.completions.create(
            model=MODEL, messages=messages, store=True, metadata=labels, extra_body=goes_on
        )
        response = client.responses.create(model=MODEL, input="Hello!", store=True)
        for alias in ALIASES:
            client.post("/aliases", body={"alias": alias, "target": MODEL}, cast_to=object)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).finished_at, SECONDS, "the first job did not end")
        ended = client.fine_tuning.jobs.retrieve(job.id)
        assert ended.status == "succeeded", ended.error
        wait_for(lambda: client.batches.retrieve(batch.id).completed_at, SECONDS, "the first batch was not completed")
        return Originals(file.id, upload.id, part.id, job.id, batch.id, input_file.id, chat.id, response.id, hook.id)
