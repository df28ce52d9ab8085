"""The input file of a batch: checked whole before its first line is run, then read again a line at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from opsin_server.batches.answers import LineRequest
from opsin_server.errors import BadRequest
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.read_lines import read_lines
from opsin_server.storage.records import BatchFault

MOST_LINES = 50_000  # as at OpenAI
MOST_FAULTS = 100  # that are listed; no line behind them is read
ID_CHARACTERS = 512
AROUND = 4096  # bytes of a line beside its body


class Refused(Exception):
    """The file is no input of the batch: its faults, in the order of the lines."""

    def __init__(self, faults: list[BatchFault]) -> None:
        super().__init__(faults[0].message)
        self.faults = faults


@dataclass(frozen=True)
class Checked:
    """lines: how many requests there are, all of one model."""

    lines: int
    model: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


def _without_nulls(data: bytes, error: msgspec.ValidationError) -> _Line:
    """A line with keys that none has. Null stands for one that was left out. Raises _Fault, of a line that is no object
    too."""
    try:
        given = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise _Fault("invalid_json_line", f"This line is no JSON object: {error}") from None
    known = {name: value for name, value in given.items() if name in _Line.__struct_fields__}
    if unknown := next((name for name in given if name not in known and bytes(given[name]) != b"null"), None):
        raise _Fault("unknown_parameter", f"Unrecognized request argument supplied: {unknown[:100]}", unknown[:100])
    return msgspec.json.decode(msgspec.json.encode(known), type=_Line)


class _Body(msgspec.Struct):
    model: Any = None


class _Fault(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def check(path: Path, endpoint: str, max_body_bytes: int, on_line: Callable[[], None]) -> Checked:
    """Raises Refused. on_line: called for each; what it raises ends the work."""
    reader = _Reader(endpoint, max_body_bytes)
    faults: list[BatchFault] = []
    try:
        for number, data in read_lines(path, DataLimits(max_line_bytes=max_body_bytes + AROUND)):
            on_line()
            try:
                reader.read(number, data)
            except _Fault as fault:
                faults.append(BatchFault(fault.code, fault.message, number, fault.param))
            if len(faults) == MOST_FAULTS or reader.lines > MOST_LINES:
                break
    except BadRequest as error:  # no lines at all
        faults.append(BatchFault("invalid_json_line", error.message))
    if reader.lines > MOST_LINES:
        faults.append(BatchFault("too_many_tasks", f"The file has more than {MOST_LINES:,} requests"))
    if not reader.lines and not faults:
        faults.append(BatchFault("empty_file", "The file has no request: write one on each line"))
    if faults:
        raise Refused(faults)
    assert reader.model is not None
    return Checked(reader.lines, reader.model)


def requests(path: Path, endpoint: str, max_body_bytes: int) -> Iterator[LineRequest]:
    """Of a file that was checked."""
    reader = _Reader(endpoint, max_body_bytes)
    for number, data in read_lines(path, DataLimits(max_line_bytes=max_body_bytes + AROUND)):
        yield reader.read(number, data)


@dataclass
class _Reader:
    endpoint: str
    max_body_bytes: int
    lines: int = 0
    model: str | None = None
    _seen: dict[bytes, int] = field(default_factory=dict)  # digests of ids, with their lines

    def read(self, number: int, data: bytes | None) -> LineRequest:
        """Raises _Fault."""
        self.lines += 1
        if data is None:
            raise _Fault("invalid_request", f"The line has more than {self.max_body_bytes + AROUND:,} bytes")
        try:
            data.decode()  # (what is kept raw is not looked at)
            line = msgspec.json.decode(data, type=_Line)
        except msgspec.ValidationError as error:
            line = _without_nulls(data, error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Fault("invalid_json_line", f"This line is no JSON object: {error}") from None
        custom_id = self._custom_id(line.custom_id, number)
        if line.method != "POST":
            raise _Fault("invalid_request", f"'method' must be POST, not {_shown(line.method)}", "method")
        if line.url != self.endpoint:
            raise _Fault(
                "url_mismatch", f"'url' must be {self.endpoint}, the batch's endpoint, not {_shown(line.url)}", "url"
            )
        body = bytes(line.body)
        self._check_model(body)
        return LineRequest(number, custom_id, body)

    def _custom_id(self, value: Any, number: int) -> str:
        if value is None:
            raise _Fault("missing_required_parameter", "Missing required parameter: 'custom_id'", "custom_id")
        if not (isinstance(value, str) and 0 < len(value) <= ID_CHARACTERS and "\0" not in value):
            raise _Fault("invalid_request", f"'custom_id' must be text of 1 to {ID_CHARACTERS} characters", "custom_id")
        digest = hashlib.sha256(value.encode()).digest()
        first = self._seen.setdefault(digest, number)
        if first != number:
            raise _Fault(
                "duplicate_custom_id", f"The custom_id {_shown(value)} stands on line {first} already", "custom_id"
            )
        return value

    def _check_model(self, body: bytes) -> None:
        if not body.startswith(b"{"):
            raise _Fault("missing_required_parameter", "'body' must be the request, a JSON object", "body")
        try:
            model = msgspec.json.decode(body, type=_Body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Fault("invalid_json_line", f"This line's body is no JSON object: {error}", "body") from None
        if not isinstance(model, str) or not model:
            raise _Fault("missing_required_parameter", "Missing required parameter: 'body.model'", "body.model")
        if self.model is None:
            self.model = model
        if model != self.model:
            raise _Fault(
                "model_mismatch",
                f"The model is {_shown(model)}, and that of the lines before is {_shown(self.model)}: a batch has one",
                "body.model",
            )


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."
