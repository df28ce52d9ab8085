"""Every fault of an input file is told with its line, and what is right is read as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opsin_server.batches import input_file
from opsin_server.batches.input_file import AROUND, MOST_FAULTS, Checked, Refused, check, requests
from support.batch_server import ENDPOINT, MODEL

BODY = {"model": MODEL, "messages": []}


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    fields = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": BODY} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def checked(path: Path, data: bytes, most: int = 1000) -> Checked:
    path.write_bytes(data)
    return check(path, ENDPOINT, most, lambda: None)


def faults(path: Path, data: bytes) -> list[tuple[int | None, str, str | None]]:
    with pytest.raises(Refused) as refused:
        checked(path, data)
    return [(fault.line, fault.code, fault.param) for fault in refused.value.faults]


def test_lines_are_read_with_their_numbers_and_bodies_as_they_stand(tmp_path: Path) -> None:
    body = b'{ "model": "m",  "messages": [1e2, "\\u00fc"]}'
    data = (
        line("\u00fc").replace(b"{", b'{"other": null, ', 1)
        + b"\r\n\n"
        + line("b").replace(json.dumps(BODY).encode(), body)
    )
    assert checked(tmp_path / "a", data) == Checked(2, MODEL)
    found = list(requests(tmp_path / "a", ENDPOINT, 1000))
    assert [(one.line, one.custom_id) for one in found] == [(1, "\u00fc"), (3, "b")]
    assert found[1].body == body


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (line(body={"model": MODEL, "x": "\ud800"}).replace(b"\\ud800", b"\xff"), "invalid_json_line", None),
        (b"[" * 5000, "invalid_json_line", None),
        (line(...), "missing_required_parameter", "custom_id"),
        (line(7), "invalid_request", "custom_id"),
        (line("x" * 513), "invalid_request", "custom_id"),
        (line("first"), "duplicate_custom_id", "custom_id"),
        (line(method="GET"), "invalid_request", "method"),
        (line().replace(b"{", b'{"priority": 1, ', 1), "unknown_parameter", "priority"),
        (line(url="/v1/embeddings"), "url_mismatch", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(body=[1]), "missing_required_parameter", "body"),
        (line(body={"messages": []}), "missing_required_parameter", "body.model"),
        (line(body={"model": 7}), "missing_required_parameter", "body.model"),
        (line(body={"model": "other"}), "model_mismatch", "body.model"),
        (line(body={"model": MODEL, "x": "x" * (1000 + AROUND)}), "invalid_request", None),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, bad: bytes, code: str, param: str | None) -> None:
    found = faults(tmp_path / "a", line("first") + b"\n" + bad + b"\n" + line("last"))
    assert len(found) == 1
    assert found[0][:2] == (2, code)
    assert param is None or found[0][2] == param


def test_a_file_that_is_no_lines_or_has_none_or_too_many_or_all_bad_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    assert faults(path, b"\n \n") == [(None, "empty_file", None)]
    assert faults(path, b"\x1f\x8b" + bytes(20)) == [(None, "invalid_json_line", None)]
    assert len(faults(path, b"no\n" * 1000)) == MOST_FAULTS
    monkeypatch.setattr(input_file, "MOST_LINES", 3)
    three = b"\n".join(line(str(n)) for n in range(3))
    assert checked(path, three).lines == 3
    assert faults(path, three + b"\n" + line("4") + b"\n" + b"not read") == [(None, "too_many_tasks", None)]
