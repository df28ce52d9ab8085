"""The engine's side of the door: a socket that the engine polls between steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import zmq

from opsin_server.ipc.messages import Arrays, FromEngine, ToEngine, pack, unpack_to_engine


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class EngineSocket:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)  # ms: what was said last must still arrive
        self._socket.connect(address)

    def send(self, message: FromEngine) -> None:
        self._socket.send_multipart(pack(message))

    def receive(self, wait_seconds: float, other: HasFileno | None = None) -> Iterator[tuple[ToEngine, Arrays | None]]:
        """Everything that has arrived; when nothing has, waits so long for the first, or for `other` to be readable."""
        if wait_seconds:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            if other is not None:
                poller.register(other.fileno(), zmq.POLLIN)
            poller.poll(int(wait_seconds * 1000))
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield unpack_to_engine(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()
        self._context.term()
