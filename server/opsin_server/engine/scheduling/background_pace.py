"""How much of the background a step may have beside others, by what steps were measured to take. No torch: seconds come
from whoever runs it.

A step without anybody else is the background's whole. Beside others it has as many tokens as make the step longer by a
part that a reader does not see: on a CPU, where every token costs, one or two, on a GPU all that it has. A picture
costs more than that on most machines, and would wait for as long as others never pause: now and then one is encoded
all the same, so seldom that it is less than one in a hundred of the pauses between others' tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from opsin_server.engine.scheduling.encode_pace import EncodePace

STRETCH = 0.15  # of a step's time
PICTURE_SECONDS = 2.0  # between two pictures that take longer than that
KEPT = 0.98  # of what earlier steps say, at each new one
ALL = 2**31 - 1


class BackgroundPace:
    def __init__(self, encode: EncodePace, clock: Callable[[], float]) -> None:
        self._encode, self._clock, self._next_picture = encode, clock, 0.0
        self._sums = [0.0] * 5  # of steps: how many, their tokens, their seconds, tokens squared, tokens times seconds

    def observe(self, tokens: int, seconds: float) -> None:
        """Of a step that computed one token of each sequence, and encoded nothing."""
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [KEPT * old + one for old, one in zip(self._sums, new, strict=True)]

    def tokens(self, others: int) -> int:
        """Beside so many of others; at least one, so that it ends."""
        base, each = self._line()
        return 1 if each <= 0 else max(1, min(ALL, int(STRETCH * (base + each * others) / each)))

    def patches(self, others: int) -> int:
        """To encode beside so many tokens of others."""
        base, each = self._line()
        return self._encode.within(STRETCH * (base + each * others))

    def owes_picture(self) -> bool:
        """Whether one may be encoded now, whatever it takes."""
        return self._clock() >= self._next_picture

    def encoded(self) -> None:
        """Something was, beside others."""
        self._next_picture = self._clock() + PICTURE_SECONDS

    def _line(self) -> tuple[float, float]:
        """Seconds of a step, and of each token in it: the line that fits best. All of it is the tokens' where steps
        have not differed yet."""
        count, tokens, seconds, squares, products = self._sums
        if not count:
            return 0.0, 0.0
        spread = squares - tokens * tokens / count
        if spread < 0.01 * count:
            return 0.0, seconds / tokens
        each = max((products - tokens * seconds / count) / spread, 1e-9)
        return max(0.0, (seconds - each * tokens) / count), each
