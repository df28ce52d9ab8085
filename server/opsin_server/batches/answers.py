"""What a line of a batch asks, what is answered, and how that stands in the files that a batch makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from opsin_server.storage.file_records import new_id
from opsin_server.storage.records import BatchResult


@dataclass(frozen=True)
class LineRequest:
    """body: JSON as it stands in the line."""

    line: int
    custom_id: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a route would have sent: status and JSON body; with the tokens that it took."""

    status: int
    request_id: str
    body: bytes
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def failed(self) -> bool:
        return self.status >= 400


class Answerer(Protocol):
    """Does what a route does with a body, without HTTP. started: called once the engine computes it. Raises
    Unavailable, StorageFailed and EngineFailed, which are no answers: it may be asked again."""

    async def __call__(self, endpoint: str, body: bytes, started: Callable[[], None]) -> Answer: ...


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _ResultLine(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


def result_of(request: LineRequest, answer: Answer) -> BatchResult:
    response = _Response(answer.status, answer.request_id, msgspec.Raw(answer.body))
    data = _encoded(_ResultLine(new_id("batch_req_"), request.custom_id, response, None))
    return BatchResult(
        request.line, data, answer.failed, answer.input_tokens, answer.cached_tokens, answer.output_tokens
    )


def not_run(request: LineRequest, code: str, message: str) -> str:
    """The line of the error file of a request that was not run to its end."""
    return _encoded(_ResultLine(new_id("batch_req_"), request.custom_id, None, _Error(code, message)))


def _encoded(line: _ResultLine) -> str:
    return msgspec.json.encode(line).decode()
