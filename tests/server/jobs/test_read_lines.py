"""A file's lines and their JSON: what is no JSON lines, and what two readers would read in two ways, is said."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_server.errors import BadRequest
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.read_lines import Line, parse_row, read_lines

LIMITS = DataLimits()
ROW = b'{"a": 1}'


def lines(path: Path, data: bytes, limits: DataLimits = LIMITS) -> list[Line]:
    path.write_bytes(data)
    return list(read_lines(path, limits))


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (ROW + b"\n" + ROW + b"\n", [1, 2]),
        (ROW + b"\r\n" + ROW, [1, 2]),
        (b"\xef\xbb\xbf" + ROW + b"\n\n \t\r\n" + ROW, [1, 4]),
        (b"\n\n" + ROW, [3]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_lines_are_counted_as_editors_do(data: bytes, numbers: list[int], tmp_path: Path) -> None:
    assert lines(tmp_path / "f", data) == [Line(number, ROW) for number in numbers]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (json.dumps([{"a": 1}]).encode(), "one JSON array"),
        (b"\xef\xbb\xbf\n [\n{}]", "one JSON array"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16"),
        (gzip.compress(ROW, mtime=0), "gzip"),
        (b"PK\x03\x04..", "ZIP"),
        (b"PAR1...", "Parquet"),
    ],
)
def test_files_of_another_kind(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=said):
        lines(tmp_path / "f", data)


def test_a_line_over_the_limit_is_passed_over(tmp_path: Path) -> None:
    limits = DataLimits(max_line_bytes=8)
    data = ROW + b"\n" + b"x" * 200_000 + b"\n" + ROW + b"\r\n" + ROW + b" \n"
    assert lines(tmp_path / "f", data, limits) == [Line(1, ROW), Line(2, None), Line(3, ROW), Line(4, None)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1, "a": 2}', 'the key "a" stands twice'),
        (b'{"b": [{"x": {}, "x": {}}]}', 'the key "x" stands twice'),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at 8"),
        (b'{"a": 1', "not valid JSON: expecting ',' delimiter at character 8"),
        (b'{"a": 1} {"a": 2}', "not valid JSON: extra data at character 10"),
        (b"{", "without line breaks"),
        (b"[1]", "must be a JSON object, not a list"),
        (b'"a"', "not a string"),
        (b"null", "not null"),
        (b"true", "not true or false"),
        (b"1", "not a number"),
        (b'{"a":' + b"[" * 100_000, "too deep"),
        (b'{"a":' + b"1" * 10_000 + b"}", "not valid JSON"),
        (b'{"a": [' + b"," * 2_000_000, "more than 1,000,000 commas"),
    ],
)
def test_what_is_no_row(data: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parse_row(data, LIMITS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5))
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()
    found = lines(tmp_path_factory.mktemp("rows") / "f", data)
    assert [parse_row(line.data or b"", LIMITS) for line in found] == rows


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_row_or_a_sentence(data: bytes) -> None:
    with suppress(BadRequest):
        assert isinstance(parse_row(data, LIMITS), dict)
