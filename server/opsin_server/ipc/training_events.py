"""What a training run says of itself."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """An optimizer step. step: from 1 on. loss: mean over the labelled tokens of its rows, in nats; accuracy: how many
    of them were the likeliest token. (Of DPO over its pairs: how many were in the preferred order.) norm: of the
    gradient before clipping; NaN where the step was left out since it was not finite. tokens, labels: of this step.
    seconds: since training began, without pauses."""

    step: int
    loss: float
    accuracy: float
    rate: float
    norm: float
    tokens: int
    labels: int
    seconds: float


class Evaluated(msgspec.Struct, frozen=True, tag=True):
    """The whole validation set. best: whether its loss is the lowest so far."""

    step: int
    loss: float
    accuracy: float
    best: bool


class CheckpointSaved(msgspec.Struct, frozen=True, tag=True):
    step: int
    folder: str


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Something that the run's owner should know."""

    text: str


Status = Literal["succeeded", "failed", "cancelled", "paused"]


class TrainingEnded(msgspec.Struct, frozen=True, tag=True):
    """step: how many were made. checkpoint: the last one's folder, or the best one's where rows to validate with were
    given; empty: there is none. error: why it failed, for whoever owns the run. waits: only because others had the
    memory, so that it may be tried again."""

    status: Status
    step: int
    tokens: int
    checkpoint: str = ""
    error: str = ""
    waits: bool = False


TrainingEvent: TypeAlias = StepDone | Evaluated | CheckpointSaved | Notice | TrainingEnded
