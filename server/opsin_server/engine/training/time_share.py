"""When a piece of training may run: idle time is training's whole; beside answers it spends a credit.

The credit holds a floor: so many seconds of training for each second of answers. What training has had of idle time
counts, so that at a low load nothing runs between the steps of answers at all. No piece is begun that does not fit:
what each kind takes a row is known from having run it.
"""

from __future__ import annotations

from opsin_server.engine.training.pieces import Piece

WEIGHT = 0.2  # of the newest time in what is expected
LONGEST = 0.05  # seconds of credit that can be saved up, unless a piece or what one step earns is more
AHEAD = 2.0  # seconds of idle time that count against the floor later on


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

    def answered(self, seconds: float) -> None:
        """A step of answers took so long."""
        self._step = seconds
        self._credit += self._earned * seconds

    def may_run(self, piece: Piece, spent: float) -> bool:
        """Between two steps of answers, after training has had `spent` seconds there."""
        cost = self.costs.of(piece)
        self._credit = min(self._credit, max(LONGEST, cost + self._earned * self._step))
        if self.longest_gap is not None and self._step + spent + cost > self.longest_gap:
            return False
        return self._credit > 0 and cost <= self._credit

    def ran(self, piece: Piece, seconds: float) -> None:
        self.costs.observe(piece, seconds)
        self._credit = max(-AHEAD, self._credit - seconds)
