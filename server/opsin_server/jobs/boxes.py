"""Absolute coordinates in a row's text, rescaled with the image that they speak of.

A box that was drawn on a picture of 4000 x 3000 pixels means nothing to a model that sees 1000 x 750 of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from opsin_server.text.conversation import Message, TextPart

Size = tuple[int, int]  # width, height

_NUMBER = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_TAGGED = re.compile(rf"(<box>|<\|box_start\|>)(\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*)(</box>|<\|box_end\|>)")
_JSON = re.compile(rf'("(?:bbox_2d|bbox|point_2d)"\s*:\s*\[)((?:\s*{_NUMBER}\s*,)+\s*{_NUMBER}\s*)(\])')
_EACH = re.compile(_NUMBER)


def has_boxes(messages: Sequence[Message]) -> bool:
    return any(
        pattern.search(part.text)
        for message in messages
        for part in message.parts
        if isinstance(part, TextPart)
        for pattern in (_TAGGED, _JSON)
    )


def rescaled(messages: Sequence[Message], old: Size, new: Size) -> list[Message]:
    """The conversation, its coordinates of a picture of size `old` as those of one of size `new`."""

    def text(part: TextPart) -> TextPart:
        said = part.text
        for pattern in (_TAGGED, _JSON):
            said = pattern.sub(lambda found: found[1] + _scaled(found[2], old, new) + found[3], said)
        return TextPart(said)

    return [
        replace(message, parts=tuple(text(part) if isinstance(part, TextPart) else part for part in message.parts))
        for message in messages
    ]


def _scaled(numbers: str, old: Size, new: Size) -> str:
    """Numbers by turns across and down; each keeps its number of digits behind the point."""
    place = iter(range(len(numbers)))

    def scaled(found: re.Match[str]) -> str:
        axis = next(place) % 2
        digits = len(found[0].partition(".")[2])
        return f"{float(found[0]) * new[axis] / old[axis]:.{digits}f}"

    return _EACH.sub(scaled, numbers)
