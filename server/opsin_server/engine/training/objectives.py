"""What training makes small: of labelled tokens, or of pairs of answers of which one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_server.engine.training.losses import UnlearnedLosses


@dataclass(frozen=True)
class Score:
    """Sums over `count` tokens, or pairs: the loss, and how often the model was right."""

    loss: float
    hits: int
    count: int


class Objective(Protocol):
    def weights(self, losses: Tensor) -> Tensor:
        """losses F32 [M] of a micro-batch's labelled tokens -> [M], the gradient of the step's loss by each."""

    def score(self, found: UnlearnedLosses) -> Score:
        """What a micro-batch adds to the report."""


@dataclass(frozen=True)
class Supervised:
    """The mean over all labelled tokens of a step. labels: how many these are."""

    labels: int

    def weights(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1 / self.labels)

    def score(self, found: UnlearnedLosses) -> Score:
        return Score(float(found.losses.double().sum()), int(found.hits.sum()), len(found.losses))


@dataclass(frozen=True)
class Preference:
    """-log σ(β · ((log π_w - log ρ_w) - (log π_l - log ρ_l))), the mean over all pairs of a step: π is the model with
    the adapter and ρ without. Source: arXiv 2305.18290 (DPO).

    counts: labelled tokens of each row; rows 2 i and 2 i + 1 are a pair, the preferred one first. references [rows]:
    log ρ of each. pairs: of the step.
    """

    counts: Sequence[int]
    references: Tensor
    beta: float
    pairs: int

    def weights(self, losses: Tensor) -> Tensor:
        slope = self.beta * torch.sigmoid(-self.margins(losses)) / self.pairs
        of_rows = torch.stack([slope, -slope], 1).flatten()
        return of_rows.repeat_interleave(torch.tensor(self.counts, device=losses.device)).to(losses.dtype)

    def score(self, found: UnlearnedLosses) -> Score:
        margins = self.margins(found.losses)
        return Score(float(-F.logsigmoid(margins).sum()), int((margins > 0).sum()), len(margins))

    def margins(self, losses: Tensor) -> Tensor:
        """F64 [pairs of this micro-batch]."""
        better, worse = (log_likelihoods(losses, self.counts) - self.references.to(losses.device)).view(-1, 2).unbind(1)
        return self.beta * (better - worse)


def log_likelihoods(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """losses [M] -> F64 [rows]: the log probability of all labelled tokens of each row."""
    return torch.stack([-row.double().sum() for row in losses.split(list(counts))])
