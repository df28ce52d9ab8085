"""What crosses the door arrives as it was sent, and what does not fit is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from opsin_plugins.spec import Span
from opsin_server.ipc.client import merge
from opsin_server.ipc.messages import (
    Arrays,
    Cancel,
    Item,
    Logprobs,
    Output,
    Outputs,
    Sampling,
    Stats,
    Submit,
    pack,
    unpack_from_engine,
    unpack_to_engine,
)

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
SUBMIT = Submit(
    "r", Sampling(seed=2**63 - 1), 5, (1, 2), -3, 3, (Span(1, 2, 0),), (Item(b"d" * 32, (1, 2, 2), 1, (4, 6)),)
)
ARRAYS = Arrays(np.arange(4, dtype=np.int32), np.arange(12, dtype=np.int32).reshape(3, 4), (PIXELS,))


def frames(message: Submit = SUBMIT, arrays: Arrays = ARRAYS) -> list[bytes]:
    return [bytes(f) for f in pack(message, arrays)]


def test_a_submit_arrives_with_its_arrays() -> None:
    message, arrays = unpack_to_engine(frames())
    assert message == SUBMIT
    assert arrays is not None
    assert np.array_equal(arrays.ids, ARRAYS.ids)
    assert np.array_equal(arrays.positions, ARRAYS.positions)
    assert np.array_equal(arrays.pixels[0], PIXELS)


def test_other_messages_are_one_frame() -> None:
    assert unpack_to_engine([bytes(pack(Cancel(("a", "b")))[0])]) == (Cancel(("a", "b")), None)
    said = Outputs((Output("r", (1,), (Logprobs(-0.5, (1, 2), (-0.5, -1.0)),), "stop"),), Stats(steps=3))
    assert unpack_from_engine(bytes(pack(said)[0])) == said


@pytest.mark.parametrize("broken", [frames()[:-1], [*frames(), b""], [frames()[0], b"abc", *frames()[2:]]])
def test_frames_that_do_not_fit_are_refused(broken: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"frames|buffer|reshape"):
        unpack_to_engine(broken)


def test_an_unknown_message_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        unpack_to_engine([msgspec.msgpack.encode({"type": "Execute", "code": "1"})])


def test_what_a_slow_reader_missed_is_one_output() -> None:
    parts = [
        Output("r", (1,), cached_tokens=4, queue_seconds=0.1),
        Output("r", (2, 3)),
        Output("r", (4,), finish="length"),
    ]
    assert merge(parts) == Output("r", (1, 2, 3, 4), finish="length", cached_tokens=4, queue_seconds=0.1)
