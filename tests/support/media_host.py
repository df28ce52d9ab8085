"""A web server for pictures that behaves as it is told, on a loopback port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
Answer = bytes | Callable[[socket.socket], None]


def ok(body: bytes, kind: str = "image/png", more: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    return head.encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return head.encode()


def silence(raw: socket.socket) -> None:
    """Takes the request and never answers."""
    _until_closed(raw, b"")


def drip(raw: socket.socket) -> None:
    """An answer that takes for ever, a byte at a time."""
    raw.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n")
    _until_closed(raw, b"x")


def flood(raw: socket.socket) -> None:
    """As many bytes as are taken, without a length."""
    raw.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n\r\n")
    _until_closed(raw, b"x" * 65536, 0)


def hang_up(raw: socket.socket) -> None:
    """Half of an answer."""
    raw.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nhalf")


def _until_closed(raw: socket.socket, data: bytes, pause: float = 0.05) -> None:
    raw.settimeout(60)
    try:
        while not data:
            if not raw.recv(1024):
                return
        while True:
            raw.sendall(data)
            time.sleep(pause)
    except OSError:
        return


class MediaHost:
    """Answers by path; counts the requests of each."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        self._open.add(raw)
        try:
            with raw, suppress(OSError):  # whoever asked may leave
                self._answer(raw)
        finally:
            self._open.discard(raw)

    def _answer(self, raw: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            block = raw.recv(4096)
            if not block:
                return
            head += block
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        answer = self.answers.get(path, NOT_FOUND)
        raw.sendall(answer) if isinstance(answer, bytes) else answer(raw)

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def close(self) -> None:
        self._listener.close()
