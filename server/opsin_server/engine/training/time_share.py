"""When a piece of training may run: idle time is training's whole; beside answers it spends a credit.

The credit holds a floor: so many seconds of training for each second of answers. What training has had of idle time
counts, so that at a low load nothing runs between the steps of answers at all. No piece is begun that does not fit:
what each kind takes a row is known from having run it. Credit is not saved up: it would come out as one long gap.
"""

from __future__ import annotations

from collections import Counter

from opsin_server.engine.training.pieces import Piece

WEIGHT = 0.2  # of the newest time in what is expected
AHEAD = 2.0  # seconds of idle time that count against the floor later on
MISSED = 2.0  # seconds of credit that a limit on gaps has let go, from which on it is said


class PieceCosts:
    """Seconds that pieces take, a row, by their kind."""

    def __init__(self) -> None:
        self._per_row: dict[str, float] = {}

    def of(self, piece: Piece) -> float:
        """What it will take, about; 0 for a kind that never ran."""
        return self._per_row.get(piece.kind, 0.0) * piece.rows

    def observe(self, piece: Piece, seconds: float) -> None:
        if piece.rows:
            new, old = seconds / piece.rows, self._per_row.get(piece.kind)
            self._per_row[piece.kind] = new if old is None else old + WEIGHT * (new - old)


class TimeShare:
    """floor: training's share of the time, at least, while there is something to train. longest_gap: seconds between
    two tokens of an answer that training must not stretch; None: it may."""

    def __init__(self, floor: float, longest_gap: float | None = None) -> None:
        self.costs, self.longest_gap = PieceCosts(), longest_gap
        self._earned = floor / (1 - floor)  # seconds of training for a second of answers
        self._credit = self._step = 0.0
        self.seconds, self.pieces = 0.0, Counter[str]()  # all that ever ran
        self._missed: float | None = 0.0  # seconds of credit that the limit let go; None: it was said

    def answered(self, seconds: float) -> None:
        """A step of answers took so long."""
        self._step = seconds
        self._credit += self._earned * seconds

    def may_run(self, piece: Piece, spent: float) -> bool:
        """Between two steps of answers, after training has had `spent` seconds there."""
        cost = self.costs.of(piece)
        fits = self.longest_gap is None or self._step + spent + cost <= self.longest_gap
        most = cost + self._earned * self._step  # a gap has one piece, or as many small ones as make one step's share
        if not fits and self._missed is not None:
            self._missed += max(0.0, self._credit - most)
        self._credit = min(self._credit, most)
        return fits and self._credit > 0 and cost <= self._credit

    def shortfall(self, piece: Piece) -> str | None:
        """Says once that floor and limit cannot both hold. piece: the next."""
        if self._missed is None or self._missed < MISSED or self.longest_gap is None:
            return None
        self._missed = None
        return (
            f"--itl-slo-ms {1000 * self.longest_gap:g} leaves less to training than --train-share-min: a step of "
            f"answers took {1000 * self._step:.1f} ms and a piece of training takes {1000 * self.costs.of(piece):.1f} "
            "ms. Beside answers training goes on more slowly, or not at all; shorter rows make smaller pieces"
        )

    def ran(self, piece: Piece, seconds: float) -> None:
        self.costs.observe(piece, seconds)
        self.seconds += seconds
        self.pieces[piece.kind] += 1
        self._credit = max(-AHEAD, self._credit - seconds)
