"""A file, an upload with one part and a job that succeeded, made over the API: what the placeholders are copies of."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx
import openai

from support.served import PLAIN, wait_for

MODEL = "gpt-4o-mini"  # as the SDK's tests call it
ROW = {"messages": [{"role": "user", "content": "Count to three."}, {"role": "assistant", "content": "1 2 3"}]}
ROWS = 10  # the least that a job takes
DATA = b"Example data"


@dataclass(frozen=True)
class Originals:
    """Their ids."""

    file: str
    upload: str
    part: str
    job: str


def made(url: str) -> Originals:
    """url: of the API, with its /v1."""
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
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).finished_at, 120, "the first job did not end")
        ended = client.fine_tuning.jobs.retrieve(job.id)
        assert ended.status == "succeeded", ended.error
        return Originals(file.id, upload.id, part.id, job.id)
