"""How much of the background a step may have beside others, by what steps were measured to take. No torch: seconds come
from whoever runs it.

A step without anybody else is the background's whole. Beside others it has as many tokens as make the step longer by a
part that a reader does not see: on a CPU, where every token costs, one or a part of one, on a GPU most of what it has.
A picture costs more than that on most machines, and would wait for as long as others never pause: now and then one is
encoded all the same, so seldom that it is less than one in a hundred of the pauses between others' tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from opsin_server.engine.scheduling.encode_pace import EncodePace

STRETCH = 0.15  # of a step's time
LEAST = 0.1  # tokens a step, so that it ends
EXACT = 16  # tokens up to which each number of them is a size of its own
PICTURE_SECONDS = 2.0  # between two pictures that take longer than that
FASTER, SLOWER = 0.2, 0.01  # weights of the newest step: most that take longer than expected were disturbed


class BackgroundPace:
    def __init__(self, encode: EncodePace, clock: Callable[[], float]) -> None:
        self._encode, self._clock, self._next_picture = encode, clock, 0.0
        self._expected: dict[int, tuple[float, float]] = {}  # tokens and seconds of steps, by their size
        self._owed = 0.0  # parts of a token

    def observe(self, tokens: int, seconds: float) -> None:
        """Of a step that encoded nothing."""
        size = _size(tokens)
        old_tokens, old_seconds = self._expected.get(size, (tokens, seconds))
        weight = FASTER if seconds < old_seconds else SLOWER
        self._expected[size] = (
            old_tokens + weight * (tokens - old_tokens),
            old_seconds + weight * (seconds - old_seconds),
        )

    def tokens(self, others: int) -> int:
        """Beside so many of others, in one step: what fits, of which parts of a token add up over steps. No more than
        what was tried, as in steps of its own."""
        self._owed += max(LEAST, self._fits(others))
        whole = int(self._owed)
        self._owed -= whole
        return whole

    def patches(self, others: int) -> int:
        """To encode beside so many tokens of others."""
        return self._encode.within(STRETCH * self._seconds(others))

    def owes_picture(self) -> bool:
        """Whether one may be encoded now, whatever it takes."""
        return self._clock() >= self._next_picture

    def encoded(self) -> None:
        """Something was, beside others."""
        self._next_picture = self._clock() + PICTURE_SECONDS

    def _fits(self, others: int) -> float:
        reached, at = float(others), self._seconds(others)
        most = (1 + STRETCH) * at
        for tokens, seconds in sorted(known for known in self._expected.values() if known[0] > others):
            if seconds > most:
                reached += (tokens - reached) * (most - at) / (seconds - at)
                break
            reached, at = tokens, max(at, seconds)
        return reached - others

    def _seconds(self, tokens: int) -> float:
        """Of a step, by those of its size or, if there were none, by the largest below it; 0: nothing is known."""
        known = [size for size in self._expected if size <= _size(tokens)]
        return self._expected[max(known)][1] if known else 0.0


def _size(tokens: int) -> int:
    """Steps of one size are taken for alike."""
    return tokens if tokens <= EXACT else EXACT + tokens.bit_length()
