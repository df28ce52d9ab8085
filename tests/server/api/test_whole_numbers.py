"""16.0 is 16 wherever a whole number is meant: many languages have one kind of number."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.adapters import PromoteVersion
from opsin_server.api.schemas.batches import CreateBatch
from opsin_server.api.schemas.embedding_request import EmbeddingRequest
from opsin_server.api.schemas.files import CreateUpload
from opsin_server.api.schemas.fine_tuning import CreateJob
from opsin_server.errors import BadRequest

JOB = {"model": "m", "training_file": "f"}
BATCH = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CreateJob, {**JOB, "seed": 3600}),
        (CreateJob, {**JOB, "hyperparameters": {"n_epochs": 100, "batch_size": 3600}}),
        (CreateUpload, {"filename": "f", "purpose": "batch", "bytes": 3600}),
        (CreateBatch, {**BATCH, "output_expires_after": {"anchor": "created_at", "seconds": 3600}}),
        (PromoteVersion, {"version": 3600}),
        (EmbeddingRequest, {"model": "m", "input": [1, 3600]}),
        (EmbeddingRequest, {"model": "m", "input": [[1, 3600]]}),
    ],
)
def test_a_number_without_a_fraction_is_whole(model: type[BaseModel], body: dict[str, Any]):
    text = json.dumps(body)
    assert "3600" in text
    made = parse(model, text.replace("3600", "3600.0").encode())
    assert made == parse(model, text.encode())
    assert "3600.0" not in made.model_dump_json()
    with pytest.raises(BadRequest):
        parse(model, text.replace("3600", "3600.5").encode())
