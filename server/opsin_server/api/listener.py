"""The listener, and how it ends: on SIGTERM the server turns unready and takes no new work, what runs is finished
while the listener stays open, and only then does uvicorn shut down (alone it would close the listener at once)."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import h11
import msgspec
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from opsin_server.api.admission import Admission
from opsin_server.api.listen_addresses import url_of
from opsin_server.api.middleware import error_responses, header_limits
from opsin_server.config import ServerConfig
from opsin_server.errors import BadRequest, Unavailable
from opsin_server.signals import heeded

LAST_WORDS_SECONDS = 2.0  # for streams that the drain timeout has ended
KEEP_ALIVE_SECONDS = 75  # longer than clients keep an idle connection, so that none is closed under their hands
HEAD_SECONDS = 30.0  # once or twice this, and a connection must have sent its request's head

log = logging.getLogger("opsin.serving")


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT has been obeyed. `on_started` gets the URL; port 0 takes a free port."""

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        listeners: Sequence[socket.socket],
        on_started: Callable[[str], None] = lambda url: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                loop="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(LAST_WORDS_SECONDS),
                h11_max_incomplete_event_size=header_limits.MAX_BYTES,
            )
        )
        self._admission: Admission = app.state.services.admission
        self._drain_timeout = config.drain_timeout
        self._listeners, self._on_started = list(listeners), on_started
        self._drain: asyncio.Task[None] | None = None

    async def serve_until_stopped(self) -> None:
        with _signals(self), _without_unfinished_answers():
            await self.serve(sockets=self._listeners)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started(url_of(self._listeners[0]))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's way with signals: `serve` has its own."""
        yield

    def stop(self) -> None:
        """Once: finish what runs, within the drain timeout. Twice: end it now. Again: leave without goodbye."""
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._finish())
            return
        self.force_exit = self.should_exit
        if self.force_exit:  # uvicorn would log how its own tasks were cut off
            logging.getLogger("uvicorn.error").disabled = True
        self._end_all("The server was told to stop at once")
        self.should_exit = True

    async def _finish(self) -> None:
        self._admission.drain()
        log.info("draining requests=%d seconds=%g", len(self._admission), self._drain_timeout)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._admission.idle(), self._drain_timeout)
        self._end_all(
            f"The server stopped before this answer was finished (after {self._drain_timeout:g} s of draining)"
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._admission.idle(), LAST_WORDS_SECONDS)
        self.should_exit = True

    def _end_all(self, why: str) -> None:
        self._admission.end_all(Unavailable(why))


class Protocol(H11Protocol):
    """Two things that uvicorn lacks: an end to waiting for a request's head, and an answer in the shape of every other
    error to what is not HTTP (or has a head over 64 KiB)."""

    _seen: RequestResponseCycle | None = None
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _check_head(self) -> None:
        """Closes a connection that was inside a head at the last look too. Between requests uvicorn's timer runs."""
        inside = (self.cycle is None or self.cycle.response_complete) and self.timeout_keep_alive_task is None
        if inside and self._seen is self.cycle:
            self.transport.close()
            return
        self._seen = self.cycle
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._check_head)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer is on its way already
            return
        most = f"{header_limits.MAX_BYTES // 1024} KiB"
        error = BadRequest(f"The request is not valid HTTP, or its headers are larger than {most}", code="invalid_http")
        data = msgspec.json.encode(error_responses.body(error))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            (b"connection", b"close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


@contextmanager
def _signals(server: Server) -> Iterator[None]:
    """Outside the main thread (tests) there are none to catch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, signals = asyncio.get_running_loop(), heeded()
    for number in signals:
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number in signals:  # not removed: another signal would kill what is ending already
            loop.add_signal_handler(number, log.debug, "ending already")


@contextmanager
def _without_unfinished_answers() -> Iterator[None]:
    """uvicorn logs an error for each answer that was left unfinished on purpose; `opsin.access` has a line for it."""
    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != "ASGI callable returned without completing response."
