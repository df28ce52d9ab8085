"""How far a run has come, and what its steps and evaluations add up to."""

from __future__ import annotations

from dataclasses import dataclass

from opsin_server.engine.training.micro_batch import MicroBatch
from opsin_server.engine.training.objectives import Score


@dataclass
class Progress:
    """What a checkpoint holds beside the tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations in a row
    unusable: int = 0  # steps in a row


@dataclass
class Sums:
    """Of the labelled tokens of a step or an evaluation, or of its pairs."""

    loss: float = 0.0
    hits: int = 0
    count: int = 0
    tokens: int = 0

    def add(self, batch: MicroBatch, score: Score) -> None:
        self.loss += score.loss
        self.hits += score.hits
        self.count += score.count
        self.tokens += len(batch.ids)

    @property
    def mean(self) -> float:
        return self.loss / max(1, self.count)

    @property
    def accuracy(self) -> float:
        return self.hits / max(1, self.count)
