"""The engine's side of the door: a socket that the engine polls between steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import zmq

from opsin_server.ipc.messages import Frame, FromEngine, pack


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class EngineSocket:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)  # ms: what was said last must still arrive
        self._socket.connect(address)

    def send(self, message: FromEngine, frames: Sequence[Frame] = ()) -> None:
        self._socket.send_multipart(pack(message, frames))

    def receive(self, wait_seconds: float, others: Sequence[HasFileno] = ()) -> Iterator[list[bytes]]:
        """Everything that has arrived, for `unpack_to_engine`; when nothing has, waits so long for the first, or until
        one of the others can be read."""
        if wait_seconds:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            for other in others:
                poller.register(other.fileno(), zmq.POLLIN)
            poller.poll(int(wait_seconds * 1000))
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield self._socket.recv_multipart()

    def close(self) -> None:
        self._socket.close()
        self._context.term()
