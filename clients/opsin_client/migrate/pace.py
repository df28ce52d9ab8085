"""Requests that are refused for the moment, made again when the source says so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

LATER = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
MOST_TRIES = 8
FIRST_TRIES = 4  # of a connection to an address where nothing has answered yet: some 7 seconds
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
MOST_ASKED = 600.0  # seconds that a source may ask for; one that wants more is asked once more by then


class Pace:
    """sleep: waits so many seconds. said: hears why, for who looks on."""

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, said: Callable[[str], None] = lambda why: None
    ) -> None:
        self._sleep, self._said = sleep, said

    def wait(self, attempt: int, why: str, headers: Mapping[str, str]) -> None:
        """attempt: that has failed, from 1 on."""
        seconds = asked_seconds(headers)
        if seconds is None:
            seconds = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)  # noqa: S311
        self._said(f"{why}; again in {seconds:.0f} s")
        self._sleep(seconds)


def asked_seconds(headers: Mapping[str, str]) -> float | None:
    """What Retry-After says, in seconds or, as OpenAI has it as well, in milliseconds."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):  # (a date: too few servers send one)
            continue
        if 0 <= seconds < float("inf"):
            return min(seconds, MOST_ASKED)
    return None
