"""A stream that is full, gone or not read holds nobody up, and what was left out is counted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from opsin_server.printer import Printer

PIPE_BYTES = 2**16


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # the test has closed it
            continue


def printer(descriptor: int, **options: int) -> Printer:
    return Printer(os.fdopen(os.dup(descriptor), "w", encoding="utf-8"), **options)


def read_until(descriptor: int, last: bytes) -> list[str]:
    data = b""
    while not data.endswith(last):
        data += os.read(descriptor, 2**16)
    return data.decode().splitlines()


def test_what_is_written_arrives_in_order(pipe: tuple[int, int]) -> None:
    out = printer(pipe[1])
    print(*range(1000), sep="\n", file=out)
    assert read_until(pipe[0], b"999\n") == [str(n) for n in range(1000)]
    out.drain(0)


def test_a_reader_who_comes_back_finds_whole_lines_and_how_many_are_not_there(pipe: tuple[int, int]) -> None:
    out = printer(pipe[1], max_waiting=2 * PIPE_BYTES)
    lines = [f"{n:0127}" for n in range(10 * PIPE_BYTES // 128)]
    for line in lines:  # nobody reads: a plain stream would never return
        assert out.write(f"{line}\n") == 128
    data, at, left_out = b"", 0, 0
    while at < len(lines):  # each line is there, or in the count that stands in its place
        data += os.read(pipe[0], 2**16)
        *found, data = data.split(b"\n")
        for line in map(bytes.decode, found):
            if notice := re.fullmatch(r"\((\d+) lines were left out here: they were not read in time\)", line):
                left_out += int(notice[1])
                at += int(notice[1])
            else:
                assert line == lines[at]
                at += 1
    assert data == b""
    assert left_out >= 5 * PIPE_BYTES // 128
    out.write("later\n")
    assert read_until(pipe[0], b"later\n") == ["later"]


def test_a_stream_that_does_not_block_gets_all(pipe: tuple[int, int]) -> None:
    """Another process that shares a terminal may have set it so."""
    os.set_blocking(pipe[1], False)
    out = printer(pipe[1])
    text = "x" * (3 * PIPE_BYTES) + "\n"
    out.write(text)
    assert read_until(pipe[0], b"\n") == [text.rstrip()]


def test_a_reader_who_has_left_is_no_error(pipe: tuple[int, int]) -> None:
    out = printer(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        assert out.write("hello\n") == 6
        out.flush()
        out.drain(10)


def test_a_disk_that_has_room_again_is_written_again(pipe: tuple[int, int]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    out = printer(full)
    os.close(full)
    out.write("lost\n")
    out.drain(10)
    os.dup2(pipe[1], out.fileno())
    out.write("kept\n")
    assert read_until(pipe[0], b"kept\n") == ["kept"]
