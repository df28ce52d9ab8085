"""When a piece of training may run: idle time is training's whole; beside answers it spends a credit that it earns by
the seconds that answers take.

No piece is begun that does not fit: what each kind takes a row is known from having run it.
"""

from __future__ import annotations

from opsin_server.engine.training.pieces import Piece

WEIGHT = 0.2  # of the newest time in what is expected
LONGEST = 0.05  # seconds of credit that can be saved up, unless one piece takes longer: it must run some time


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
    """share: seconds of training for each second of answers, at least. longest_gap: seconds that a piece may take
    between two steps of answers; None: as long as it takes."""

    def __init__(self, share: float, longest_gap: float | None = None) -> None:
        self.share, self.longest_gap, self.costs = share, longest_gap, PieceCosts()
        self.credit = 0.0

    def answered(self, seconds: float) -> None:
        """A step of answers took so long."""
        self.credit += self.share * seconds

    def may_run(self, piece: Piece, spent: float) -> bool:
        """Between two steps of answers, after training has had `spent` seconds there."""
        cost = self.costs.of(piece)
        self.credit = min(self.credit, max(LONGEST, cost))
        if self.longest_gap is not None and spent + cost > self.longest_gap:
            return False
        return cost <= self.credit

    def ran(self, piece: Piece, seconds: float, beside_answers: bool) -> None:
        self.costs.observe(piece, seconds)
        if beside_answers:
            self.credit -= seconds
