"""The numeric fields of requests, read from a server's own OpenAPI document, and what is tried at each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema

OPERATIONS = (
    "createChatCompletion",
    "createCompletion",
    "createResponse",
    "createMessage",
    "createEmbedding",
    "createFineTuningJob",
    "createFineTune",
    "createBatch",
    "createUpload",
    "detokenize",
)
ALWAYS = (
    "0", "-0.0", "2147483648", "9007199254740993", "9223372036854775808", "1e308", "5e-324", "NaN", "Infinity", '"5"',
    "true", "16.0", "16.5", "null",
)  # fmt: skip
DETERMINED = ("createChatCompletion", "createCompletion", "createResponse", "createMessage", "createEmbedding")
ANY_KEY, KEY = "*", "5"  # of an object with keys that clients choose: the one that is tried


@dataclass(frozen=True, eq=False)
class Field:
    """path: names, and places in lists. schema: what the document says of its value; body: of the whole body."""

    operation: str
    route: str
    path: tuple[str | int, ...]
    schema: dict[str, Any]
    body: jsonschema.protocols.Validator

    @property
    def name(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{KEY if step == ANY_KEY else step}" for step in self.path)
        return "".join(steps).removeprefix(".")

    def allows(self, text: str, body: bytes) -> bool:
        """Whether the document lets this JSON text be the field's value in this body."""
        value = json.loads(text)
        is_number = not isinstance(value, float) or math.isfinite(value)
        return is_number and self.body.is_valid(json.loads(body))

    def values(self) -> list[str]:
        """JSON texts: around the bounds, and what is odd anywhere."""
        is_whole = self.schema.get("type") == "integer"
        low, high = self.schema.get("minimum"), self.schema.get("maximum")
        if low is None and "exclusiveMinimum" in self.schema:
            low = math.ulp(0.0)
        if high is None and "exclusiveMaximum" in self.schema:
            high = self.schema["exclusiveMaximum"] - 1
        around = [*(() if low is None else (low - 1, low)), *(() if high is None else (high, high + 1))]
        around += [value for value in self.schema.get("enum", ()) if value is not None]
        shown = [json.dumps(int(value) if is_whole else value) for value in around]
        return list(dict.fromkeys([*shown, *ALWAYS]))


def numeric_fields(document: dict[str, Any], operations: tuple[str, ...] = OPERATIONS) -> list[Field]:
    found = []
    for route, item in document["paths"].items():
        described = item.get("post", {})
        if described.get("operationId") in operations:
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            body = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
            name = described["operationId"]
            found += [Field(name, route, path, part, body) for path, part in _numbers(schema, (), document, ())]
    return found


def _numbers(
    schema: dict[str, Any], path: tuple[str | int, ...], document: dict[str, Any], inside: tuple[str, ...]
) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """inside: the schemas of which this one is a part."""
    if (name := schema.get("$ref", "").rpartition("/")[2]) and name not in inside:
        yield from _numbers(document["components"]["schemas"][name], path, document, (*inside, name))
    if schema.get("type") in ("integer", "number") or any(type(v) in (int, float) for v in schema.get("enum", ())):
        yield path, schema
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _numbers(part, path, document, inside)
    for name, part in schema.get("properties", {}).items():
        yield from _numbers(part, (*path, name), document, inside)
    if isinstance(schema.get("items"), dict):
        yield from _numbers(schema["items"], (*path, 0), document, inside)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _numbers(schema["additionalProperties"], (*path, ANY_KEY), document, inside)


HOLE = "the value"


@dataclass(frozen=True)
class Bodies:
    """Requests that are answered, and the same with a value at a field. picture: a data URL; training, lines: ids of
    files for jobs and for batches."""

    model: str
    picture: str
    training: str
    lines: str

    def at(self, field: Field, text: str) -> bytes:
        body = self._around(field)
        place: Any = body
        steps = [KEY if step == ANY_KEY else step for step in field.path]
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            if following is None:
                _put(place, step, HOLE)
            else:
                _put(place, step, [] if isinstance(following, int) else {}, keep=True)
                place = place[step]
        return json.dumps(body).replace(json.dumps(HOLE), text).encode()

    def without(self, field: Field) -> bytes | None:
        """The body that null in this field stands for; None where its answer is another each time."""
        if field.operation not in DETERMINED or len(field.path) > 1 or field.path[0] in ("temperature", "seed"):
            return None
        body = self._around(field)
        return json.dumps({name: value for name, value in body.items() if name != field.path[0]}).encode()

    def _around(self, field: Field) -> dict[str, Any]:
        """What goes with the field."""
        body, path = self._plain(field.operation), field.path
        image = {"type": "image_url", "image_url": {"url": self.picture}}
        seen = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
        if field.operation == "createEmbedding" and path[0] == "messages":
            return {"model": self.model, "messages": seen}
        if path[-1] == "max_pixels":
            body |= {"input": [image]} if field.operation == "createEmbedding" else {"messages": seen}
        if path[:2] in (("input", 0), ("prompt", 0)) and path[-1] == 0:
            body[str(path[0])] = []
        if path[0] == "method":
            body["method"] = {"type": path[1]}
        if path[-1] == "seconds":
            body[str(path[0])] = {"anchor": "created_at"}
        if path == ("top_logprobs",):
            wanted = (
                {"include": ["message.output_text.logprobs"]}
                if field.operation == "createResponse"
                else {"logprobs": True}
            )
            body |= wanted
        if path == ("max_completion_tokens",):
            del body["max_tokens"]
        if path == ("tokens", 0):
            body["tokens"] = []
        return body

    def _plain(self, operation: str) -> dict[str, Any]:
        """Answers are drawn, by a seed where there is one."""
        said = [{"role": "user", "content": "Hello there!"}]
        bodies: dict[str, dict[str, Any]] = {
            "createChatCompletion": {"messages": said, "max_tokens": 6, "temperature": 1, "seed": 7},
            "createCompletion": {"prompt": "Hello there!", "max_tokens": 6, "temperature": 1, "seed": 7},
            "createResponse": {"input": "Hello there!", "max_output_tokens": 16, "temperature": 0},
            "createMessage": {"messages": said, "max_tokens": 6, "temperature": 0},
            "createEmbedding": {"input": "Hello there!"},
            "createFineTuningJob": {"training_file": self.training},
            "createFineTune": {"training_file": self.training},
            "detokenize": {"tokens": [5]},
        }
        if operation == "createBatch":
            return {"input_file_id": self.lines, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        if operation == "createUpload":
            return {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": 64}
        return {"model": self.model, **bodies[operation]}


def _put(place: Any, step: Any, value: Any, *, keep: bool = False) -> None:
    """keep: what is there stays."""
    if isinstance(place, dict):
        place[step] = place.get(step, value) if keep else value
    elif len(place) <= step:
        place.append(value)
    elif not keep:
        place[step] = value
