"""The engine's side of the door: a socket that the engine polls between steps."""

from __future__ import annotations

from collections.abc import Iterator

import zmq

from opsin_server.ipc.messages import Arrays, FromEngine, ToEngine, pack, unpack_to_engine


class EngineSocket:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)  # ms: what was said last must still arrive
        self._socket.connect(address)

    def send(self, message: FromEngine) -> None:
        self._socket.send_multipart(pack(message))

    def receive(self, wait_seconds: float) -> Iterator[tuple[ToEngine, Arrays | None]]:
        """Everything that has arrived; when nothing has, waits so long for the first."""
        if wait_seconds and not self._socket.poll(int(wait_seconds * 1000)):
            return
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield unpack_to_engine(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()
        self._context.term()
