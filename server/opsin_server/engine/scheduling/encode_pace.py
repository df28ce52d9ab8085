"""How much a step may encode, by what encoding was measured to take. No torch: seconds come from whoever runs it."""

from __future__ import annotations

ENCODE_SECONDS = 0.05  # of a step: a pause between everyone's tokens that a reader does not see


class EncodePace:
    """most: patches that a step never exceeds beyond its first image, however fast the tower is."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._rate: float | None = None  # patches a second

    @property
    def patches(self) -> int:
        """Beyond them a step encodes no further image. Its first is always encoded, whatever it takes."""
        return self.most if self._rate is None else min(self.most, int(self._rate * ENCODE_SECONDS))

    def within(self, seconds: float) -> int:
        """Patches that take so long at most; none before anything was measured."""
        return 0 if self._rate is None else min(self.most, int(self._rate * seconds))

    def observe(self, patches: int, seconds: float) -> None:
        """The last measurement counts half: small images, and the first with a kernel, are slower than others."""
        rate = patches / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else (self._rate + rate) / 2
