"""What the process that tries grammars out is asked, and what it says. A line of JSON each."""

from __future__ import annotations

import msgspec


class Asked(msgspec.Struct, frozen=True):
    text: str
    gbnf: bool = False
    other: str = ""


class Found(msgspec.Struct, frozen=True):
    """fault: a sentence, or nothing. text: the grammar in llguidance's form."""

    fault: str
    text: str


asked_of = msgspec.json.Decoder(Asked).decode
found_of = msgspec.json.Decoder(Found).decode
line_of = msgspec.json.encode  # (which writes no line's end)
