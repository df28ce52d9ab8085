"""Whether an engine process that has died is started again, and when. No process and no clock: times are given."""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_PAUSE = 10.0  # seconds


@dataclass
class RestartPolicy:
    """An engine that has never been ready is not started again: nothing would be different. Another is started again
    after at most `max_restarts` deaths in a row. A row ends with a request that finishes or a training run that comes
    further, and when the engine has been ready for more than `steady_seconds`."""

    max_restarts: int = 5
    steady_seconds: float = 300.0
    deaths: int = field(default=0, init=False)  # in a row
    _loaded_once: bool = field(default=False, init=False)
    _ready_since: float | None = field(default=None, init=False)  # None: it is loading

    def ready(self, now: float) -> None:
        """It has loaded. now: seconds, by a clock that only goes forward."""
        self._loaded_once, self._ready_since = True, now

    def progressed(self) -> None:
        """A request has finished, or a training run has come further than before."""
        self.deaths = 0

    def died(self, now: float) -> float | None:
        """Seconds to wait before it is started again; None: it is given up."""
        if self._ready_since is not None and now - self._ready_since > self.steady_seconds:
            self.deaths = 0
        self._ready_since = None
        self.deaths += 1
        if not self._loaded_once or self.deaths > self.max_restarts:
            return None
        return min(LONGEST_PAUSE, 0.1 * 2**self.deaths) if self.deaths > 1 else 0.0
