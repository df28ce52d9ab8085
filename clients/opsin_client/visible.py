"""Text of strangers for a terminal: nothing in it moves the cursor, changes a colour or turns the line around."""

from __future__ import annotations

import re

# Controls but for tabs and line ends, what changes the direction of a line, and halves of surrogate pairs.
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The same, with such characters as \x1b or \u202e."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
