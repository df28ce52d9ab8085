"""The standard streams of a command: they may be closed, of any encoding, full, or read by nobody."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

ESCAPES = "opsin.escapes"


def prepare() -> None:
    r"""Before anything is opened. A stream that is closed becomes /dev/null: otherwise the next socket takes its
    number, and what children print goes into that. What an encoding has no place for is printed as `\xf6`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _output(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, errors=ESCAPES)
    ascii_only = codecs.lookup(sys.stdin.encoding or "ascii").name == "ascii"  # then UTF-8 reads more, and no less
    _reconfigure(sys.stdin, errors="backslashreplace", **({"encoding": "utf-8"} if ascii_only else {}))


def _nowhere(number: int) -> Any:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
    return open(number, "w" if number else "r", encoding="utf-8", closefd=False)


def _output(stream: io.TextIOWrapper) -> Output:
    options = {name: getattr(stream, name) for name in ("encoding", "line_buffering", "write_through")}
    return Output(stream.detach(), **options)


def _reconfigure(stream: Any, **options: str) -> None:
    if hasattr(stream, "reconfigure"):  # (what stands in for a stream in tests has not)
        stream.reconfigure(**options)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""An error handler of codecs. A byte of a path that was no text (PEP 383) is `\xff`, like any other character."""
    assert isinstance(error, UnicodeEncodeError)
    codes = [ord(character) for character in error.object[error.start : error.end]]
    bytewise = (code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code for code in codes)
    return "".join(ascii(chr(code))[1:-1] for code in bytewise), error.end


codecs.register_error(ESCAPES, _escape)


def leave(code: int) -> NoReturn:
    """Ends the process, at once: Python would take apart what was imported, which with torch is 0.6 s of work
    [measured]. What it printed must have arrived, or its code is not 0."""
    arrived = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    os._exit(code or int(not all(arrived)))


def _flush(stream: Any) -> bool:
    """Whether what a stream holds can be written."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


class Output(io.TextIOWrapper):
    """Standard output, whose errors say what it is that cannot be written."""

    def write(self, text: str) -> int:
        with _named("standard output"):
            return super().write(text)

    def flush(self) -> None:
        with _named("standard output"):
            super().flush()


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
