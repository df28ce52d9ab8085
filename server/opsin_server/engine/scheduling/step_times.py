"""What steps of one kind were measured to take, by how many tokens they compute. No torch: seconds come from whoever
runs them."""

from __future__ import annotations

EXACT = 16  # tokens up to which each number of them is a size of its own
FASTER, SLOWER = 0.2, 0.01  # weights of the newest step: most that take longer than expected were disturbed


class StepTimes:
    def __init__(self) -> None:
        self._expected: dict[int, tuple[float, float]] = {}  # tokens and seconds of steps, by their size

    def observe(self, tokens: int, seconds: float) -> None:
        size = _size(tokens)
        old_tokens, old_seconds = self._expected.get(size, (tokens, seconds))
        weight = FASTER if seconds < old_seconds else SLOWER
        self._expected[size] = (
            old_tokens + weight * (tokens - old_tokens),
            old_seconds + weight * (seconds - old_seconds),
        )

    def seconds(self, tokens: int) -> float:
        """Of a step, by those of its size or, if there were none, by the largest below it, or else by the smallest
        above; 0: nothing is known."""
        known = [size for size in self._expected if size <= _size(tokens)]
        size = max(known) if known else min(self._expected, default=None)
        return 0.0 if size is None else self._expected[size][1]

    def fits(self, tokens: int, seconds: float, most: float) -> float:
        """How many tokens more make a step that takes `seconds` with so many take `most`. No more than what was
        tried."""
        reached, at = float(tokens), seconds
        for more, longer in sorted(known for known in self._expected.values() if known[0] > tokens):
            if longer > most:
                if at < most:
                    reached += (more - reached) * (most - at) / (longer - at)
                break
            reached, at = more, max(at, longer)
        return reached - tokens


def _size(tokens: int) -> int:
    """Steps of one size are taken for alike."""
    return tokens if tokens <= EXACT else EXACT + tokens.bit_length()
