"""How a training file is read: what is learned, and what becomes of rows that are wrong or too long."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from opsin_server.errors import BadOption, ConfigError
from opsin_server.jobs.training_options import LARGEST, Count
from opsin_server.option import Option

RESIZE = "min, max, a number of pixels, or WIDTHxHEIGHT"
_PIXELS = re.compile(r"[0-9]{1,9}")
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


class ImageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """resize: "min" brings a side down to the size of the model's vision, "max" changes nothing, and a number brings it
    down to so many pixels. side: which side that is. size: width and height that every image gets, whatever its ratio;
    `resize_of` reads it and `resize` from one text. snap: to multiples of what one visual token stands for. max_pixels:
    at most so many after all resizing, where a row does not say. boxes: coordinates in a row's text are rescaled with
    its image."""

    # (msgspec 0.23 corrupts memory when it decodes a union of words, a bounded number and a pair: two fields.)
    resize: Literal["min", "max"] | Count = "max"
    side: Annotated[
        Literal["width", "height", "max", "min"], Option("The side that --resize speaks of.", name="resize-side")
    ] = "width"
    size: tuple[Count, Count] | None = None
    snap: Annotated[
        bool, Option("Resize to multiples of what one visual token stands for.", name="snap-to-patch-size")
    ] = False
    max_pixels: Annotated[Count | None, Option("Pixels of an image, at most, where its row does not say.")] = None
    boxes: Annotated[bool, Option("Rescale the boxes in a row's text with its image.")] = False

    def __post_init__(self) -> None:
        if self.size is not None and self.resize != "max":
            raise ConfigError(f"resize is {self.resize!r} and size is {list(self.size)}: give one")
        if self.snap and self.size is None and self.resize == "max":
            raise BadOption("snap_to_patch_size", "snap_to_patch_size is true, and nothing is resized: give resize")


class DataOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """train_on: all that the assistant says, its last turn alone, or every token but the first. max_seq_length: tokens
    of a row; None: as many as the model takes. min_rows: fewer are refused; OpenAI asks for 10."""

    train_on: Annotated[
        Literal["assistant", "last", "all"], Option("What is learned: all that the assistant says, its last turn, all.")
    ] = "assistant"
    on_bad_row: Annotated[Literal["refuse", "skip"], Option("What becomes of a file with a wrong row.")] = "refuse"
    on_long_row: Annotated[
        Literal["drop", "refuse", "truncate"], Option("What becomes of a row of more than --max-seq-length tokens.")
    ] = "drop"
    max_seq_length: Annotated[
        Annotated[int, Meta(ge=2, le=LARGEST)] | None, Option("Tokens of a row. Default: as many as the model takes.")
    ] = None
    min_rows: Annotated[Count, Option("Rows that a file must have.")] = 10
    images: ImageOptions = ImageOptions()


def resize_of(said: object) -> dict[str, Any]:
    """Fields of ImageOptions. said: "min", "max", a number of pixels, or WIDTHxHEIGHT; None: they are not given. Raises
    BadOption."""
    if said is None:
        return {}
    change: dict[str, Any] = {"resize": said}
    if isinstance(said, str) and (pair := _SIZE.fullmatch(said)) is not None:
        change = {"size": [int(pair[1]), int(pair[2])]}
    elif isinstance(said, str) and _PIXELS.fullmatch(said):
        change = {"resize": int(said)}
    try:
        msgspec.convert(change, ImageOptions)
    except msgspec.ValidationError:
        raise BadOption("resize", f"resize must be {RESIZE}") from None
    return change
