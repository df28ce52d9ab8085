"""An engine without a model: it answers from a script, and remembers what it was told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from opsin_plugins.spec import I32
from opsin_server.api.engine_status import EngineState
from opsin_server.config import image_limit
from opsin_server.errors import EngineFailed, Unavailable
from opsin_server.ipc.memory_messages import MemoryLedger
from opsin_server.ipc.messages import (
    AdapterRef,
    AdapterReport,
    Arrays,
    Logprobs,
    Output,
    PromptLogprobs,
    Ready,
    Stats,
    Submit,
)


@dataclass
class Script:
    """tokens: what is generated, then `finish`. die_after: the engine is gone before the token of this number. held:
    the tokens from `held_from` on wait until it is set."""

    tokens: Sequence[int] = ()
    finish: str | None = "stop"
    delay: float = 0.0  # before each token
    first_delay: float = 0.0
    held: threading.Event | None = None
    held_from: int = 0
    die_after: int | None = None
    error: str | None = None  # finish "error" with this message
    batch: int = 1  # tokens an output
    cached: int = 0


@dataclass
class FakeStream:
    engine: FakeEngine
    submit: Submit
    script: Script
    ids: I32
    choice: int = 0
    cancelled_at: float | None = None
    over: bool = False

    async def __aiter__(self) -> AsyncIterator[Output]:
        script, rid = self.script, self.submit.request_id
        tokens = list(script.tokens)[: self.submit.max_tokens]
        finish = "length" if len(tokens) == self.submit.max_tokens else script.finish
        await asyncio.sleep(script.first_delay)
        if (prompt := self._prompt()) is not None:
            yield Output(rid, prompt=(prompt,))
        if not self.submit.max_tokens:
            yield Output(rid, finish="length", cached_tokens=script.cached, queue_seconds=0.25)
            return
        for start in range(0, len(tokens), script.batch):
            if script.delay:
                await asyncio.sleep(script.delay)
            while script.held is not None and start >= script.held_from and not script.held.is_set():
                await asyncio.sleep(0.002)
            self._check(start)
            if self.over:
                return
            ids = tuple(tokens[start : start + script.batch])
            last = start + script.batch >= len(tokens) and script.die_after is None and script.error is None
            yield Output(rid, ids, self._logprobs(ids), finish if last else None, None, script.cached, 0.25)
            if last:
                self.over = True
                return
        self._check(len(tokens))
        self.over = True
        if script.error is not None:
            raise EngineFailed(script.error)
        yield Output(rid, (), (), script.finish, None, script.cached, 0.25)

    def _check(self, position: int) -> None:
        dead = self.script.die_after is not None and position >= self.script.die_after
        if dead or self.engine.state != "ready":
            self.over = True
            raise EngineFailed("the engine stopped while it worked on this request")

    def _logprobs(self, ids: Sequence[int]) -> tuple[Logprobs, ...]:
        top = self.submit.sampling.top_logprobs
        if top < 0:
            return ()
        return tuple(
            Logprobs(-0.5, tuple((i + k) % 256 for k in range(top)), tuple(-0.5 - k for k in range(top))) for i in ids
        )

    def _prompt(self) -> PromptLogprobs | None:
        """Of each token after the first -0.25, a rank of 2, and that as likely as the token before it was each number
        behind that one's."""
        top, ids = self.submit.prompt_logprobs, self.ids
        if top < 0 or len(ids) < 2 or self.choice:
            return None
        ranks = [2] * (len(ids) - 1)
        whole = [ranks, *((ids[:-1] + 1 + k) % 256 for k in range(top))]
        real = [[-0.25 - k] * len(ranks) for k in range(1 + top)]
        return PromptLogprobs(1, top, np.array(whole, "<i4").tobytes(), np.array(real, "<f4").tobytes())

    def cancel(self) -> None:
        if not self.over and self.cancelled_at is None:
            self.cancelled_at = time.monotonic()
            self.over = True


@dataclass
class FakeEngine:
    script: Script | Callable[[Submit], Script] = field(default_factory=Script)
    state: EngineState = "ready"
    failure: str | None = None
    max_context: int = 1000
    stats: Stats = field(default_factory=lambda: Stats(running=1, waiting=2, blocks_used=3, blocks_free=9))
    streams: list[FakeStream] = field(default_factory=list)
    arrays: list[Arrays] = field(default_factory=list)
    silent_since: float | None = None

    restarts: int = 0
    adapters: AdapterReport = field(default_factory=AdapterReport)
    kept: list[AdapterRef] = field(default_factory=list)

    def on_adapters(self, report: AdapterReport) -> None:
        """Set by who wants to know."""

    def keep_adapters(self, refs: Sequence[AdapterRef]) -> None:
        self.kept = list(refs)

    def engines(self) -> dict[str, FakeEngine]:
        return {"0": self}

    @property
    def heard(self) -> float:
        return time.monotonic() if self.silent_since is None else self.silent_since

    @property
    def ready(self) -> Ready | None:
        if self.state == "starting":
            return None
        limit, ledger = image_limit(None, self.max_context), MemoryLedger(1, (), 1, 1, 16)
        return Ready("cpu", "float32", "torch", self.max_context, limit, 8, ledger)

    def submit_choices(self, message: Submit, arrays: Arrays) -> list[FakeStream]:
        """Each choice follows the script that there is when it is asked for."""
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        streams = []
        for choice in range(message.choices):
            script = self.script(message) if callable(self.script) else self.script
            streams.append(FakeStream(self, message, script, arrays.ids, choice))
        self.streams += streams
        self.arrays.append(arrays)
        return streams
