"""The process that prepares a training file for a server: `python -m opsin_server.jobs.prepare_worker`."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import IO, cast

import msgspec

from opsin_server.errors import BadRequest, OpsinError
from opsin_server.jobs.prepare import DataRefused, Role, Source, prepare
from opsin_server.jobs.prepare_messages import (
    Broken,
    Done,
    FileBytes,
    FromProcess,
    Lines,
    PrepareFile,
    Refused,
    WantFile,
)
from opsin_server.text.encode_prompt import read_encoder

NICEST = 19  # it runs while nobody else on this machine wants to
TELL_SECONDS = 0.05  # between two tellings of how far it is
BEAT_SECONDS = 0.5  # the same, while nothing is done: the server may end this process whenever it is told


class Server:
    """The other side of the standard streams. What libraries print goes to standard error."""

    def __init__(self) -> None:
        self._to = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._from = sys.stdin.buffer
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._answers: SimpleQueue[bytes | BadRequest] = SimpleQueue()
        self._told, self._lines = 0.0, 0

    def asked(self) -> PrepareFile:
        found = msgspec.json.decode(self._from.readline(), type=PrepareFile)
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()
        return found

    def _listen(self) -> None:
        """Ends this process with the server, whose end is that of the stream."""
        while line := self._from.readline():
            said = msgspec.json.decode(line, type=FileBytes)
            refusal = BadRequest(said.refusal, code=said.code) if said.refusal else None
            self._answers.put(refusal or _exactly(self._from, said.size))
        os._exit(1)

    def _beat(self) -> None:
        try:
            while True:
                time.sleep(BEAT_SECONDS)
                self.tell_lines()
        except BrokenPipeError:
            os._exit(1)

    def read(self, file_id: str) -> bytes:
        """An uploaded file. Raises BadRequest."""
        with self._asking:
            self.tell(WantFile(str(file_id)))
            answer = self._answers.get()
        if isinstance(answer, BadRequest):
            raise answer
        return answer

    def done(self, lines: int) -> None:
        self._lines = lines
        if (now := time.monotonic()) - self._told > TELL_SECONDS:
            self._told = now
            self.tell_lines()

    def tell_lines(self) -> None:
        self.tell(Lines(self._lines))

    def tell(self, message: FromProcess) -> None:
        with self._lock:
            self._to.write(msgspec.json.encode(message) + b"\n")
            self._to.flush()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        os._exit(1)
    return found


def main() -> None:
    os.nice(NICEST)
    server, code = Server(), 1
    try:
        server.tell(_prepared(server.asked(), server))
        code = 0
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)  # not by the interpreter's own way out, which waits for the thread that listens


def _prepared(asked: PrepareFile, server: Server) -> FromProcess:
    """How it ended."""
    try:
        source = Source(
            read_encoder(asked.config),
            asked.options,
            version=asked.version,
            max_image_tokens=asked.max_image_tokens,
            media=asked.media,
            limits=asked.limits,
            files=server.read,
            threads=asked.threads,
            role=cast("Role", asked.role),
        )
        prepare(Path(asked.file), source, Path(asked.out), server.done)
    except DataRefused as error:
        return Refused(error.message, error.param, error.code, error.report)
    except BadRequest as error:
        return Refused(error.message, error.param, error.code)
    except BrokenPipeError:
        raise
    except OSError as error:
        return Broken(error.strerror or str(error), error.errno or 0)
    except (OpsinError, ValueError, MemoryError) as error:
        return Broken(str(error) or type(error).__name__)
    return Done()


if __name__ == "__main__":
    main()
