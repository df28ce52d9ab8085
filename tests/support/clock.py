"""The time, which a test may let pass."""

from __future__ import annotations

import time


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead
