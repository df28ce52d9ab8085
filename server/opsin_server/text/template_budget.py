"""What one render of a chat template may use: CPU time, the weight of one value, and all that it makes.

A value weighs its characters, and a list the weights of its members as often as they stand in it, plus a place for
each. So what Python does with one value in one call (print it, compare it, hash it, sort it) takes a time and a room
that its weight bounds, and what is checked here between two calls is enough. The few calls whose result may outweigh
all that they are given (`replace`, `join`, a width in a format) are reckoned up before they are made: see
`template_strings`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import GeneratorType
from typing import Any

from opsin_server.errors import OpsinError
from opsin_server.text.trusted import Trusted

MAX_SECONDS = 0.5  # CPU time of the rendering thread: a busy machine fails no honest template
MAX_OUTPUT = 2**20  # characters, beside the conversation's own: of the output, and of any one value
MAX_MADE = 32  # times that much, in all values together
MAX_NUMBER = 10**6  # as an argument: a width, a count
MAX_BITS = 4096  # of an integer
MAX_DEPTH = 100  # of lists in lists: C code that follows them has no other limit
PLACE = 8  # what a member of a list weighs beside itself

_STRINGS = {str, Trusted}
_ITEMS: Any = type({}.items())
_CONTAINERS: Any = (list, tuple, set, frozenset, dict, _ITEMS, type({}.keys()), type({}.values()))


class TemplateStopError(OpsinError):
    """The template left its bounds: its fault, not the request's."""

    code = "chat_template_limit"


class Budget:
    """Of one render. size: characters of the conversation, which a template may use beside its own."""

    def __init__(self, size: int) -> None:
        self.size = MAX_OUTPUT + size
        self._left = MAX_MADE * self.size
        self._end = time.thread_time() + MAX_SECONDS
        self._look = time.monotonic() + MAX_SECONDS
        # Lists do not change in the sandbox. Each is kept with its weight, so that its id stays its own.
        self._weighed: dict[int, tuple[Any, int, int]] = {}

    def check(self, size: int = 0) -> None:
        """Before a value of this size is made."""
        if size > self.size:
            raise TemplateStopError(f"the chat template writes more than {self.size} characters")
        # The CPU clock is a system call (0.7 us); no thread gets more CPU time than there is time (0.06 us).
        if (now := time.monotonic()) > self._look:
            if (left := self._end - time.thread_time()) < 0:
                raise TemplateStopError(f"the chat template runs for more than {MAX_SECONDS} s")
            self._look = now + left

    def checked(self, value: Any) -> Any:
        """A value that has just been made."""
        size = 0
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, GeneratorType):
            return self._each(value)
        elif isinstance(value, _CONTAINERS):
            self._weigh(value)
            size = PLACE * len(value)
        elif type(value) is int and value.bit_length() > MAX_BITS:
            raise TemplateStopError(f"the chat template computes a number of more than {MAX_BITS} bits")
        self.check(size)
        self._left -= size
        if self._left < 0:
            raise TemplateStopError(f"the chat template makes more than {MAX_MADE * self.size} characters in all")
        return value

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            yield self.checked(value)

    def _weigh(self, value: Any) -> tuple[int, int]:
        """Its weight, and how deep lists stand in lists in it."""
        if isinstance(value, str):
            return len(value), 0
        if not isinstance(value, _CONTAINERS):
            return 1, 0
        if (known := self._weighed.get(id(value))) is not None:
            return known[1:]
        weight, depth = PLACE, 0
        if isinstance(value, list) and set(map(type, value)) <= _STRINGS:  # lines, words: 30 times as fast
            weight += PLACE * len(value) + sum(map(len, value))
        else:
            for member in _members(value):
                inner, below = self._weigh(member)
                weight, depth = weight + PLACE + inner, max(depth, below)
                if weight > self.size:
                    break
        if weight > self.size:
            raise TemplateStopError(f"the chat template makes a list that weighs more than {self.size} characters")
        if depth >= MAX_DEPTH:
            raise TemplateStopError(f"the chat template makes lists in lists, more than {MAX_DEPTH} deep")
        self._weighed[id(value)] = value, weight, depth + 1
        return weight, depth + 1


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.items()
    if isinstance(value, _ITEMS):
        for pair in value:
            yield from pair
    else:
        yield from value


def check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) is int and abs(value) > MAX_NUMBER:
            raise TemplateStopError(f"the chat template asks for {value} of something; the limit is {MAX_NUMBER}")
