"""Finds stop strings in text that comes in pieces; the pieces' borders make no difference."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """The stop string that ends first counts; of those that end together, the longest. It is never given out.

    Text is held back only while it can still become a stop string. Each character costs O(1) a stop string, whatever
    the strings are. Source: Knuth, Morris and Pratt, 1977.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("an empty stop string would stop every text")
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._firsts = {stop[0] for stop in stops}
        self._matched = [0] * len(stops)  # how much of each stop string the text so far ends with
        self._held = ""
        self._stopped = False
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown, and whether a stop string was found; after that, nothing more is shown."""
        if self._stopped or not self._stops:
            return ("", True) if self._stopped else (text, False)
        if not self._held and self._firsts.isdisjoint(text):  # 0.2 us for a token's text, where the loop takes 2
            return text, False
        for at, char in enumerate(text):
            if length := self._step(char):
                self._stopped = True
                shown = self._held + text[: at + 1]
                self._held = ""
                return shown[: len(shown) - length], True
        whole, hold = self._held + text, max(self._matched)
        self._held = whole[len(whole) - hold :]
        return whole[: len(whole) - hold], False

    def finish(self) -> str:
        """The text has ended: what was held back became no stop string."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> int:
        """The length of the longest stop string that ends with this character, or 0."""
        found = 0
        for i, (stop, borders) in enumerate(self._stops):
            length = self._matched[i]
            while length and stop[length] != char:
                length = borders[length - 1]
            length += stop[length] == char
            self._matched[i] = length
            if length == len(stop) and length > found:
                found, self.found = length, stop
        return found


def _borders(stop: str) -> list[int]:
    """For each beginning of `stop`, the length of its longest proper beginning that is also its end."""
    borders = [0]
    for char in stop[1:]:
        length = borders[-1]
        while length and stop[length] != char:
            length = borders[length - 1]
        borders.append(length + (stop[length] == char))
    return borders
