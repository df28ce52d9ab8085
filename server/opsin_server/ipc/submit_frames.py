"""The raw frames behind a Submit, from its arrays and back. What does not fit the message is refused on either side:
here it is one request's fault, in the middle of a step it would be everybody's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from opsin_server.ipc.messages import Arrays, Frame, Submit

INT32, UINT8 = np.dtype(np.int32), np.dtype(np.uint8)


class WrongFrames(ValueError):
    """The arrays of a request do not fit what its message says of them. The text has both."""


class FrameFormat(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def frames_of(message: Submit, arrays: Arrays) -> list[Frame]:
    """What travels behind the message. Raises WrongFrames for an array whose type or shape is not the message's."""
    given: list[np.ndarray[Any, Any]] = [arrays.ids, arrays.positions, *arrays.pixels, *arrays.arrange]
    formats = _formats(message, len(given), arrays.ids.size)
    for array, expected in zip(given, formats, strict=True):
        if array.dtype != expected.dtype or array.shape != expected.shape:
            found = FrameFormat(expected.name, array.dtype, array.shape)
            raise WrongFrames(f"{expected.name} are {found}, and {expected} by their request")
    return [np.ascontiguousarray(array).data for array in given]


def arrays_from(message: Submit, frames: Sequence[bytes]) -> Arrays:
    """What came behind the message; the arrays read the frames where they lie. Raises WrongFrames for a frame whose
    number of bytes is not the message's."""
    formats = _formats(message, len(frames), len(frames[0]) // INT32.itemsize if frames else 0)
    found = [_array(frame, expected) for frame, expected in zip(frames, formats, strict=True)]
    behind = 2 + len(message.items)
    return Arrays(found[0], found[1], tuple(found[2:behind]), tuple(found[behind:]))


def _array(frame: bytes, expected: FrameFormat) -> np.ndarray[Any, Any]:
    size = math.prod(expected.shape) * expected.dtype.itemsize
    if min(expected.shape) < 0 or len(frame) != size:
        raise WrongFrames(f"{expected.name} are {len(frame)} bytes, and {expected} by their request: {size}")
    return np.frombuffer(frame, expected.dtype).reshape(expected.shape)


def _formats(message: Submit, count: int, tokens: int) -> list[FrameFormat]:
    """Of each frame, in their order. tokens: of the prompt. Raises WrongFrames where `count` frames are too few or too
    many."""
    arranged = [(i, item) for i, item in enumerate(message.items) if item.arranged]
    formats = [
        FrameFormat("ids", INT32, (tokens,)),
        FrameFormat("positions", INT32, (message.axes, tokens)),
        *(FrameFormat(f"pixels of item {i}", UINT8, item.shape) for i, item in enumerate(message.items)),
        *(FrameFormat(f"places of item {i}'s tokens", INT32, (item.tokens,)) for i, item in arranged),
    ]
    if count != len(formats):
        raise WrongFrames(
            f"{count} frames, and {len(formats)} by their request: it has {len(message.items)} items, "
            f"{len(arranged)} of them arranged"
        )
    return formats
