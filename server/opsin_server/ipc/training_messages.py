"""What crosses the door for a training run. The engine owns the order of the rows and asks for them by number; pixels
of an image travel when it first needs them, not once an epoch."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from opsin_plugins.spec import Span, VisibleImages
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_events import TrainingEvent
from opsin_server.ipc.training_settings import TrainingSettings

Split = Literal["train", "valid"]

# ------------------------------------------------------------------------------------- to the engine


class StartTraining(msgspec.Struct, frozen=True, tag=True):
    """rows, valid_rows: how many there are, or how many pairs. largest_tokens, largest_patches: of the largest of them;
    probe: the number of one that has pictures, if any has. folder: where checkpoints go; resume: it goes on from the
    newest there, if there is one, which is of step `known` at the latest; -1: of any step."""

    job_id: str
    settings: TrainingSettings
    folder: str
    rows: int
    valid_rows: int
    largest_tokens: int
    largest_patches: int
    probe: int = 0
    resume: bool = False
    known: int = -1


class StopTraining(msgspec.Struct, frozen=True, tag=True):
    """At the next step's end, with a checkpoint."""

    job_id: str
    status: Literal["paused", "cancelled"]


class RowForm(msgspec.Struct, frozen=True):
    """A TrainingRow without its arrays."""

    axes: int
    spans: tuple[Span, ...] = ()
    items: tuple[Item, ...] = ()
    visible: tuple[VisibleImages, ...] = ()


class RowsGiven(msgspec.Struct, frozen=True, tag=True):
    """Three frames a row: ids I32 [T], positions I32 [A, T], labels U8 [T]."""

    job_id: str
    split: Split
    numbers: tuple[int, ...]
    rows: tuple[RowForm, ...]


class PixelsGiven(msgspec.Struct, frozen=True, tag=True):
    """A frame an item, U8 [N, C·p·p]; then I32 [tokens] of each that is arranged."""

    job_id: str
    items: tuple[Item, ...]


class RowsFailed(msgspec.Struct, frozen=True, tag=True):
    """What was asked for cannot be given any more; the run has failed."""

    job_id: str
    error: str


ToTraining: TypeAlias = StartTraining | StopTraining | RowsGiven | PixelsGiven | RowsFailed

# ----------------------------------------------------------------------------------- from the engine


class RowsWanted(msgspec.Struct, frozen=True, tag=True):
    job_id: str
    split: Split
    numbers: tuple[int, ...]


class PixelsWanted(msgspec.Struct, frozen=True, tag=True):
    """Of rows that have been given."""

    job_id: str
    items: tuple[Item, ...]


class TrainingEvents(msgspec.Struct, frozen=True, tag=True):
    job_id: str
    events: tuple[TrainingEvent, ...]


FromTraining: TypeAlias = RowsWanted | PixelsWanted | TrainingEvents
