"""A closed-loop client in a process of its own: reads a job from standard input, prints what happened as JSON.

While a request runs it only notes when bytes came and what they were; they are read as events after the last request,
so that the client takes a small part of the processor that the server needs. Times are `time.perf_counter()`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop
from machine import Meter

HOST = "127.0.0.1"
END = b"\r\n0\r\n\r\n"  # the last chunk of a chunked body; JSON holds no bare line ends


@dataclass
class Job:
    """requests: a file with one JSON list of messages a line; stream i takes lines i, i + streams, ... pause: seconds
    before each request, on average; by chance, the same in every run. stop: a file that ends it once it is there."""

    port: int
    requests: str
    streams: int
    fields: dict[str, Any]
    timeout: float = 600.0
    path: str = "/v1/chat/completions"
    pause: float = 0.0
    stop: str = ""


@dataclass
class Answer:
    """One request. arrivals: when each piece of text came."""

    start: float
    first: float | None = None
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""
    error: str | None = None


class Connection(asyncio.Protocol):
    """Notes what arrives. One request at a time; the connection stays open between them where the server lets it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.received: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))
        if data.endswith(END) or (data == END[2:] and not self.done.done()):
            self._finish()
        elif len(self.received) == 1 and not data.startswith(b"HTTP/1.1 200"):
            self._finish()  # an error with a plain body; it is read as far as it came

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._finish()

    def send(self, request: bytes) -> None:
        assert self.transport is not None
        self.received, self.done = [], asyncio.get_running_loop().create_future()
        self.transport.write(request)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def http_request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def one_stream(job: Job, number: int, requests: list[bytes]) -> list[tuple[float, list[tuple[float, bytes]]]]:
    """(when it was sent, what came) of each request, one after the other."""
    loop, out, chance = asyncio.get_running_loop(), [], random.Random(number)
    connection: Connection | None = None
    for request in requests:
        if job.pause:
            await asyncio.sleep(chance.expovariate(1 / job.pause))
        if job.stop and os.path.exists(job.stop):  # noqa: ASYNC240, PTH110
            break
        if connection is None or connection.transport is None or connection.transport.is_closing():
            _, connection = await loop.create_connection(Connection, HOST, job.port)
        start = time.perf_counter()
        connection.send(request)
        await connection.done
        out.append((start, connection.received))
    if connection is not None and connection.transport is not None:
        connection.transport.close()
    return out


def read_requests(job: Job) -> list[bytes]:
    lines = Path(job.requests).read_text().splitlines()
    bodies = [json.dumps(job.fields | {"messages": json.loads(line)}).encode() for line in lines]
    return [http_request(job.path, body) for body in bodies]


async def run(job: Job, requests: list[bytes]) -> dict[str, Any]:
    meter = Meter()
    async with asyncio.timeout(job.timeout):
        answers = await asyncio.gather(*(one_stream(job, i, requests[i :: job.streams]) for i in range(job.streams)))
    used = meter.read()
    read = [asdict(read_answer(*a)) for stream in answers for a in stream]
    return used | {"client_cpu_seconds": used["cpu_seconds"], "answers": read}


# ------------------------------------------------------------------------------------- after the last request


def read_answer(start: float, received: list[tuple[float, bytes]]) -> Answer:
    answer = Answer(start, end=received[-1][0] if received else start)
    raw = b"".join(data for _, data in received)
    head, _, rest = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        answer.error = raw.decode(errors="replace")[:2000] or "the connection was closed"
        return answer
    chunked = b"transfer-encoding: chunked" in head.lower()
    for at, event in events(received, len(head) + 4, chunked):
        if event == b"[DONE]":
            continue
        _note(answer, at, json.loads(event))
    if not answer.completion_tokens and answer.error is None:
        answer.error = "no usage came: " + rest[-500:].decode(errors="replace")
    return answer


def events(received: list[tuple[float, bytes]], skip: int, chunked: bool) -> Iterator[tuple[float, bytes]]:
    """(when its last byte came, data) of each server-sent event. skip: bytes of the head."""
    buffer, body = b"", b""
    for at, data in received:
        buffer += data
        if skip:
            taken = min(skip, len(buffer))
            buffer, skip = buffer[taken:], skip - taken
        if chunked:
            new, buffer = dechunk(buffer)
        else:
            new, buffer = buffer, b""
        body += new
        *whole, body = body.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield at, event[6:]


def dechunk(buffer: bytes) -> tuple[bytes, bytes]:
    """The bodies of the whole chunks at the buffer's start, and what is left of it."""
    body: list[bytes] = []
    while True:
        size, found, rest = buffer.partition(b"\r\n")
        if not found or len(rest) < int(size, 16) + 2:
            return b"".join(body), buffer
        length = int(size, 16)
        body.append(rest[:length])
        buffer = rest[length + 2 :]


def _note(answer: Answer, at: float, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        answer.error = str(chunk["error"])
        return
    usage = chunk.get("usage")
    if usage:
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in chunk["choices"]:
        text = choice["delta"].get("content")
        if text:
            answer.first = at if answer.first is None else answer.first
            answer.arrivals.append(at)
            answer.text += text
        if choice.get("finish_reason"):
            answer.end = at


def main() -> None:
    job = Job(**json.load(sys.stdin))
    found = json.dumps(uvloop.run(run(job, read_requests(job))))
    with open(1, "w", closefd=False) as out:  # (unbuffered, as PYTHONUNBUFFERED has it, a long line may be cut off)
        print(found, file=out)


if __name__ == "__main__":
    main()
