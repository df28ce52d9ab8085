"""What crosses the door arrives as it was sent, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest

from opsin_plugins.spec import Span
from opsin_server.ipc.item import Item
from opsin_server.ipc.messages import (
    Arrays,
    Cancel,
    Failed,
    Logprobs,
    Output,
    Outputs,
    Sampling,
    Stats,
    Submit,
    Unreadable,
    pack,
    unpack_from_engine,
    unpack_to_engine,
)
from opsin_server.ipc.stream import merge
from opsin_server.ipc.submit_frames import WrongFrames, arrays_from, frames_of

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
ORDER = np.array([0, 2, 1], np.int32)
ITEMS = (
    Item(b"d" * 32, (1, 2, 2), 1, (4, 6)),
    Item(b"e" * 32, (1, 2, 2), 3, (4, 6), arranged=True),
)
SUBMIT = Submit("r", Sampling(seed=2**63 - 1), 5, (1, 2), -3, 3, (Span(1, 2, 0),), ITEMS)
IDS, POSITIONS = np.arange(4, dtype=np.int32), np.arange(12, dtype=np.int32).reshape(3, 4)
ARRAYS = Arrays(IDS, POSITIONS, (PIXELS, PIXELS + 1), (ORDER,))


def sent(message: Any, frames: Any = ()) -> list[bytes]:
    return [bytes(part) for part in pack(message, frames)]


FRAMES = sent(SUBMIT, frames_of(SUBMIT, ARRAYS))[1:]


def test_a_submit_arrives_with_its_arrays() -> None:
    message, frames = unpack_to_engine(sent(SUBMIT, FRAMES))
    assert message == SUBMIT
    arrays = arrays_from(SUBMIT, frames)
    assert np.array_equal(arrays.ids, IDS)
    assert np.array_equal(arrays.positions, POSITIONS)
    assert [pixels.tolist() for pixels in arrays.pixels] == [PIXELS.tolist(), (PIXELS + 1).tolist()]
    assert [order.tolist() for order in arrays.arrange] == [ORDER.tolist()]


def test_an_array_that_lies_scattered_arrives_whole() -> None:
    turned = np.asfortranarray(POSITIONS)
    _, frames = unpack_to_engine(sent(SUBMIT, frames_of(SUBMIT, Arrays(IDS, turned, ARRAYS.pixels, ARRAYS.arrange))))
    assert np.array_equal(arrays_from(SUBMIT, frames).positions, POSITIONS)


@pytest.mark.parametrize("frames", [[], [b""], [b"one", b"two"]])
def test_messages_take_frames_along_in_both_directions(frames: list[bytes]) -> None:
    there = Cancel(("a", "b"))
    assert unpack_to_engine(sent(there, frames)) == (there, frames)
    back = Outputs((Output("r", (1,), (Logprobs(-0.5, (1, 2), (-0.5, -1.0)),), "stop"),), Stats(steps=3))
    assert unpack_from_engine(sent(back, frames)) == (back, frames)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], "0 frames, and 5 by their request: it has 2 items, 1 of them arranged"),
        (FRAMES[:-1], "4 frames, and 5"),
        ([*FRAMES, b""], "6 frames, and 5"),
        ([b"abc", *FRAMES[1:]], r"ids are 3 bytes, and int32 \[0\] by their request: 0"),
        ([FRAMES[0], b"abc", *FRAMES[2:]], r"positions are 3 bytes, and int32 \[3, 4\] by their request: 48"),
        ([FRAMES[0][:4], *FRAMES[1:]], r"positions are 48 bytes, and int32 \[3, 1\] by their request: 12"),
        ([*FRAMES[:3], FRAMES[3][:-1], FRAMES[4]], r"pixels of item 1 are 23 bytes, and uint8 \[4, 6\] .*: 24"),
        ([*FRAMES[:4], b""], r"places of item 1's tokens are 0 bytes, and int32 \[3\] by their request: 12"),
    ],
)
def test_frames_that_do_not_fit_their_message_are_refused_with_both_sizes(frames: list[bytes], said: str) -> None:
    with pytest.raises(WrongFrames, match=said):
        arrays_from(SUBMIT, frames)


@pytest.mark.parametrize("shape", [(-1, 24), (-4, -6), (24, -1)])
def test_a_shape_that_cannot_be_is_refused(shape: tuple[int, int]) -> None:
    message = msgspec.structs.replace(SUBMIT, items=(Item(b"d", (1, 2, 2), 1, shape), ITEMS[1]))
    with pytest.raises(WrongFrames, match="pixels of item 0"):
        arrays_from(message, FRAMES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"positions": POSITIONS[:, :3]}, r"positions are int32 \[3, 3\], and int32 \[3, 4\] by their request"),
        ({"positions": POSITIONS.reshape(4, 3)}, r"positions are int32 \[4, 3\]"),
        ({"positions": POSITIONS.astype(np.int64)}, r"positions are int64 \[3, 4\]"),
        ({"ids": IDS[None]}, r"ids are int32 \[1, 4\], and int32 \[4\]"),
        ({"ids": IDS.astype(np.float32)}, "ids are float32"),
        ({"pixels": (PIXELS,)}, "4 frames, and 5"),
        ({"pixels": (PIXELS, PIXELS[:2])}, r"pixels of item 1 are uint8 \[2, 6\], and uint8 \[4, 6\]"),
        ({"arrange": ()}, "4 frames, and 5"),
        ({"arrange": (ORDER[:2],)}, r"places of item 1's tokens are int32 \[2\], and int32 \[3\]"),
    ],
)
def test_arrays_that_do_not_fit_their_message_are_not_sent(changed: dict[str, Any], said: str) -> None:
    arrays = msgspec.structs.replace(ARRAYS, **changed)
    with pytest.raises(WrongFrames, match=said):
        frames_of(SUBMIT, arrays)


@dataclass
class Rubbish:
    data: bytes
    request_id: str | None


def encoded(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


RUBBISH = {
    "nothing": Rubbish(b"", None),
    "no msgpack": Rubbish(b"\xc1 what is this", None),
    "cut": Rubbish(sent(SUBMIT)[0][:-3], None),
    "no object": Rubbish(msgspec.msgpack.encode([1, 2]), None),
    "unknown": Rubbish(encoded(type="Execute", code="1"), None),
    "unknown, of a request": Rubbish(encoded(type="Execute", request_id="r"), "r"),
    "a Submit that lacks fields": Rubbish(encoded(type="Submit", request_id="r", max_tokens="many"), "r"),
    "an id that is none": Rubbish(encoded(type="Submit", request_id=5), None),
    "deep": Rubbish(b"\x82\xaarequest_id\xa1r\xa1x" + b"\x91" * 10**5 + b"\x00", None),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH.keys())
def test_what_is_no_message_says_whose_it_is_where_that_can_be_read(rubbish: Rubbish) -> None:
    for unpack in (unpack_to_engine, unpack_from_engine):
        with pytest.raises(Unreadable, match="are no message") as refused:
            unpack([rubbish.data])
        assert refused.value.request_id == rubbish.request_id


def test_a_message_of_the_other_direction_is_none() -> None:
    with pytest.raises(Unreadable):
        unpack_from_engine(sent(Cancel(("a",))))
    with pytest.raises(Unreadable):
        unpack_to_engine(sent(Failed("no")))


def test_what_a_slow_reader_missed_is_one_output() -> None:
    parts = [
        Output("r", (1,), cached_tokens=4, queue_seconds=0.1),
        Output("r", (2, 3)),
        Output("r", (4,), finish="length"),
    ]
    assert merge(parts) == Output("r", (1, 2, 3, 4), finish="length", cached_tokens=4, queue_seconds=0.1)
