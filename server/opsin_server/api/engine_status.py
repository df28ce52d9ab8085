"""What the API asks of the engine's client (`opsin_server.ipc.client` is the one that there is)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal, Protocol

from opsin_server.errors import Unavailable
from opsin_server.ipc.messages import AdapterRef, AdapterReport, Arrays, Output, Ready, Submit
from opsin_server.metrics import EngineCounts

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]

STALL_SECONDS = 30.0  # a ready engine reports every second, and after every step

_WHY_NOT = {
    "starting": "The model is loading",
    "restarting": "The engine died and is being started again",
    "failed": "The engine could not be started",
    "stopped": "The engine has been stopped",
}


class TokenStream(Protocol):
    """Outputs of one request, ending after one with `finish`. Raises EngineFailed when the engine gives up or dies."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """Takes requests: one engine process, or what shares them out among several and speaks for all. `engines` tells
    them apart: the counts of each, by its name, which stays the same when it is started again."""

    @property
    def ready(self) -> Ready | None: ...

    @property
    def state(self) -> EngineState: ...

    @property
    def failure(self) -> str | None: ...

    @property
    def heard(self) -> float: ...

    @property
    def adapters(self) -> AdapterReport: ...

    on_adapters: Callable[[AdapterReport], None]

    def keep_adapters(self, refs: Sequence[AdapterRef]) -> None: ...

    def engines(self) -> Mapping[str, EngineCounts]: ...

    def submit_choices(self, message: Submit, arrays: Arrays) -> Sequence[TokenStream]: ...


def facts(engine: Engine) -> Ready:
    """What the loaded engine said of itself. Raises Unavailable while it cannot take work."""
    if engine.state != "ready" or engine.ready is None:
        raise Unavailable(_WHY_NOT.get(engine.state, "The engine is not ready"))
    return engine.ready


def why_not_ready(engine: Engine) -> str | None:
    """A sentence, or None when the engine takes work."""
    if engine.state != "ready":
        return _WHY_NOT[engine.state]
    return stalled(engine)


def why_not_live(engine: Engine) -> str | None:
    """A sentence when only a restart of the whole server can help."""
    if engine.state in ("failed", "stopped"):
        return _WHY_NOT[engine.state]
    return stalled(engine) if engine.state == "ready" else None


def stalled(engine: Engine) -> str | None:
    silence = time.monotonic() - engine.heard
    return f"The engine has been silent for {silence:.0f} s" if silence > STALL_SECONDS else None
