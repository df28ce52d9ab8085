"""A file's lines, bounded, each with its number; and a line's JSON, strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from opsin_server.errors import BadRequest
from opsin_server.jobs.limits import DataLimits

BOM = b"\xef\xbb\xbf"
MORE = 2**16  # bytes at a time, of a line that is too long
# What people upload in place of JSON lines, by its first bytes.
OTHERS = (
    (b"\xff\xfe", "UTF-16 or UTF-32 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"\0\0\xfe\xff", "UTF-32 text"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a ZIP file"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "an Arrow file"),
)


class Line(NamedTuple):
    """data: without its end; None: longer than the limit."""

    number: int
    data: bytes | None


def read_lines(path: Path, limits: DataLimits) -> Iterator[Line]:
    """Blank lines are left out, and counted. Raises BadRequest for a file that is no JSON lines."""
    with path.open("rb") as file:
        _check_kind(file)
        number = 0
        while line := file.readline(limits.max_line_bytes + 2):
            number += 1
            if len(line.rstrip(b"\r\n")) > limits.max_line_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MORE)
                yield Line(number, None)
            elif data := line.strip():
                yield Line(number, data)


def _check_kind(file: BinaryIO) -> None:
    """Leaves the file at its first line."""
    start = file.read(4096)
    for magic, name in OTHERS:
        if start.startswith(magic):
            raise BadRequest(f"the file is {name}, not JSON lines in UTF-8")
    text = start.removeprefix(BOM)
    if text[1:2] == b"\0" or text[:1] == b"\0":
        raise BadRequest("the file is UTF-16 text or binary, not JSON lines in UTF-8")
    if text.lstrip()[:1] == b"[":
        raise BadRequest("the file is one JSON array: write each of its objects on a line of its own (JSONL)")
    file.seek(len(start) - len(text))


def parse_row(data: bytes, limits: DataLimits) -> dict[str, Any]:
    """Raises BadRequest for what is not one JSON object, or not the same one to every reader."""
    if sum(map(data.count, (b",", b"[", b"{"))) > limits.max_separators:
        raise BadRequest(f"the row has more than {limits.max_separators:,} commas and brackets")
    try:
        row = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRequest(f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start + 1}") from None
    except json.JSONDecodeError as error:
        if data.strip() in (b"{", b"}", b"},"):
            raise BadRequest("not valid JSON: each row must stand on a line of its own, without line breaks") from None
        raise BadRequest(f"not valid JSON: {_words(error)}") from None
    except RecursionError:
        raise BadRequest("the row has brackets in brackets, too deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadRequest(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadRequest(f"a row must be a JSON object, not {_kind(row)}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRequest(f"the key {json.dumps(twice[:80])} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise BadRequest(f"{name} is not JSON")


def _words(error: json.JSONDecodeError) -> str:
    return f"{re.sub(r':.*', '', error.msg).lower()} at character {error.pos + 1}"


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
