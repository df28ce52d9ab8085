"""AdamW over the trainee's flat tensor: one fused call a slice, instead of hundreds of small ones. Source: arXiv
1711.05101, as torch.optim has it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from opsin_server.engine.training.pieces import Piece
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.training_settings import TrainingSettings

SLICE = 2**20  # numbers: about a millisecond on a CPU


@dataclass(frozen=True)
class Update:
    """norm: of the gradient before it was clipped; NaN where it was not finite, and nothing has changed then. rate: of
    the language's factors."""

    norm: float
    rate: float


class Optimizer:
    """first, second [P]: the moments. steps: updates that were made."""

    def __init__(self, trainee: Trainee, settings: TrainingSettings, total_steps: int) -> None:
        self._trainee, self._settings, self._total = trainee, settings, total_steps
        self.first, self.second = torch.zeros_like(trainee.flat), torch.zeros_like(trainee.flat)
        self.steps = 0

    def update(self) -> Generator[Piece, None, Update]:
        """Takes the gradient, and leaves it zero."""
        gradient, settings = self._trainee.gradient, self._settings
        yield Piece("norm", len(gradient))
        norm = float(torch.linalg.vector_norm(gradient))
        rate = settings.learning_rate * rate_factor(settings, self.steps, self._total)
        if math.isfinite(norm):
            limit = settings.max_gradient_norm
            clip = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
            for group in self._trainee.groups:
                for first in range(group.first, group.stop, SLICE):
                    stop = min(first + SLICE, group.stop)
                    yield Piece("optimizer", stop - first)
                    self._update(slice(first, stop), rate * group.rate, clip)
            self.steps += 1
        gradient.zero_()
        return Update(norm if math.isfinite(norm) else math.nan, rate)

    def _update(self, part: slice, rate: float, clip: float) -> None:
        trainee, settings = self._trainee, self._settings
        gradient = trainee.gradient[part]
        if clip < 1:
            gradient.mul_(clip)
        done = torch.tensor(float(self.steps), device=gradient.device)
        adamw(
            [trainee.flat[part]],
            [gradient],
            [self.first[part]],
            [self.second[part]],
            [],
            [done],
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=rate,
            weight_decay=settings.weight_decay,
            eps=settings.epsilon,
            maximize=False,
        )


def rate_factor(settings: TrainingSettings, step: int, total: int) -> float:
    """What the learning rate is multiplied with in step number `step`, from 0 on; as transformers has it."""
    if step < settings.warmup:
        return step / max(1, settings.warmup)
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup) / max(1, total - settings.warmup)
    if settings.schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
