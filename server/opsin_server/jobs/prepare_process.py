"""A training file prepared by a process of its own: in a server's process its threads would hold the interpreter that
answers chats wait for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from opsin_server.errors import BadRequest, OpsinError
from opsin_server.jobs.prepare import REFUSED, Source
from opsin_server.jobs.prepare_messages import (
    Broken,
    Done,
    FileBytes,
    Lines,
    PrepareFile,
    Refused,
    WantFile,
    from_process,
)
from opsin_server.jobs.prepared import Prepared, open_prepared
from opsin_server.media.file_id import read_file

WORKER = ("-m", "opsin_server.jobs.prepare_worker")


def prepare_apart(file: Path, source: Source, out: Path, on_row: Callable[[int], None]) -> Prepared:
    """As `prepare`, with less of this machine than whoever is answered meanwhile. The source has a config."""
    assert source.config is not None
    threads = max(1, source.threads // 2)
    asked = PrepareFile(
        source.config, str(file), str(out), source.options, source.version, source.max_image_tokens, source.media,
        source.limits, source.role, threads,
    )  # fmt: skip
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, msgspec.json.encode(asked))
        _follow(process.stdin, process.stdout, source, on_row)
    except BrokenPipeError:
        raise OpsinError(_ended(process.wait())) from None
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()
    made = open_prepared(out, source.encoder, source.media)
    if made is None:
        raise OpsinError("what was prepared of the training file is not there any more")
    return made


def _follow(answers: IO[bytes], lines: IO[bytes], source: Source, on_row: Callable[[int], None]) -> None:
    """Until the file is prepared. Raises what `prepare` raises."""
    for line in lines:
        match from_process.decode(line):
            case Lines(number):
                on_row(number)
            case WantFile(file_id):
                _answer(answers, file_id, source)
            case Refused(message, param, code, report):
                if report is not None:
                    raise REFUSED[source.role](message, report)
                raise BadRequest(message, param=param, code=code)
            case Broken(message, number):
                raise OpsinError(message) if number is None else OSError(number, message)
            case Done():
                return
    raise BrokenPipeError


def _answer(answers: IO[bytes], file_id: str, source: Source) -> None:
    try:
        found = read_file(file_id, source.files)
    except OpsinError as error:
        _send(answers, msgspec.json.encode(FileBytes(refusal=error.message, code=error.code)))
    else:
        _send(answers, msgspec.json.encode(FileBytes(len(found))), found)


def _send(to: IO[bytes], line: bytes, more: bytes = b"") -> None:
    to.write(line + b"\n")
    to.write(more)
    to.flush()


def _ended(code: int) -> str:
    why = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process that reads the training file ended ({why}); is there enough memory?"
