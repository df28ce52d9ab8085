"""Requests that have a value at a field, and are answered where the value is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from boundary_fields import ANY_KEY, KEY, Field

DETERMINED = ("createChatCompletion", "createCompletion", "createResponse", "createMessage", "createEmbedding")
VIDEO = "https://videos.example/one.mp4"  # is not fetched for a model that takes none
OF_VIDEOS = ("fps", "num_frames", "min_frames", "max_frames", "total_pixels")
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
        if path[-1] == "max_pixels" or path[-1] in OF_VIDEOS:
            return {**body, **self._shown(field)}
        with_it: dict[Any, dict[str, Any]] = {
            ("top_logprobs",): {"include": ["message.output_text.logprobs"]}
            if field.operation == "createResponse"
            else {"logprobs": True},
            ("max_completion_tokens",): {"max_tokens": None},
        }
        if path[0] in ("input", "prompt", "tokens"):
            body[str(path[0])] = []
        if path[0] == "method":
            body["method"] = {"type": path[1]}
        if path[-1] == "seconds":
            body[str(path[0])] = {"anchor": "created_at"}
        return body | with_it.get(path, {})

    def _shown(self, field: Field) -> dict[str, Any]:
        """A picture or a video, where the field is of one."""
        path = field.path
        of_videos = path[-2] == 0
        kind, url = ("video_url", VIDEO) if of_videos else ("image_url", self.picture)
        part = {"type": kind, kind: {"url": url}}
        if field.operation == "createEmbedding" and path[0] != "messages":
            return {"input": [part]}
        seen = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}
        return seen | ({"input": None} if field.operation == "createEmbedding" else {})

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
