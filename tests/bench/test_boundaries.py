"""Numbers at and beyond their bounds, beside streams whose answers may not change by a bit: some fields here, at night
all that there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import boundaries
import pytest
from boundary_answers import Findings, try_fields
from boundary_bodies import Bodies
from boundary_fields import numeric_fields
from neighbours import Client, Neighbours

from support.served import Served, serving

SOME = (
    "temperature", "top_p", "top_k", "n", "seed", "logit_bias.5", "stop_token_ids[0]", "top_logprobs", "max_tokens",
    "mm_processor_kwargs.max_pixels", "mm_processor_kwargs.fps",
)  # fmt: skip


@pytest.fixture
def own() -> Iterator[Served]:
    with serving() as server:
        yield server


def tried(server: Served, only: tuple[str, ...] = ()) -> tuple[Findings, Neighbours]:
    engine = server.engine
    client = Client(urlsplit(server.url).port or 0)
    fields = numeric_fields(json.loads(client.send("GET", "/openapi.json")[1]))
    bodies: Bodies = boundaries.prepare(client)
    some = [one for one in fields if not only or (one.operation == "createChatCompletion" and one.name in only)]
    with Neighbours(urlsplit(server.url).port or 0, bodies.model) as neighbours:
        found = try_fields(client, some, bodies)
    assert found.wrong == []
    assert neighbours.different == []
    assert neighbours.answers > 0
    assert server.engine == engine, "the engine died"
    assert all({"answered", "400"} <= set(outcomes.values()) for outcomes in found.outcomes.values() if only)
    return found, neighbours


def test_some_numbers_at_their_bounds(served: Served):
    found, _ = tried(served, SOME)
    assert len(found.outcomes) == len(SOME)


@pytest.mark.nightly
def test_every_number_at_its_bounds(own: Served, record_property):
    found, neighbours = tried(own)
    assert len(found.outcomes) > 90
    record_property("result", boundaries.summary(found, neighbours))


def test_a_fault_is_found():
    """What would be wrong is said: an answer that the document forbids, and a refusal that names another field."""
    body = {"content": {"application/json": {"schema": SCHEMA}}}
    described = {"operationId": "detokenize", "requestBody": body}
    document = {"paths": {"/v1/x": {"post": described}}, "components": {"schemas": {}}}
    (field,) = numeric_fields(document, ("detokenize",))
    assert (field.name, field.values()[:4]) == ("tokens[0]", ["0", "1", "9", "10"])

    class Wrong:
        def send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
            value = json.loads(body)["tokens"][0]
            refusal = b'{"error": {"param": "model", "message": "no", "code": "invalid_value"}}'
            return (200, b'{"prompt": ""}') if value == 10 else (400, refusal)

    found = try_fields(Wrong(), [field], Bodies("m", "", "", ""))  # type: ignore[arg-type]
    assert "detokenize tokens[0]=10: it was answered" in found.wrong
    assert len(found.wrong) == len(field.values())
    assert found.outcomes[field]["1"] == "400 (invalid_value)"


SCHEMA = {
    "type": "object",
    "properties": {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}}},
}
