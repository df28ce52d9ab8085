"""What one entry of a vocabulary adds to the text, read from the decoder in tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opsin_plugins.spec import SpecError

Json = Mapping[str, Any]
Reader = Callable[[str], bytes]

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece vocabularies write a single byte
UNSTABLE = ("WordPiece", "CTC")  # a later token changes the text of an earlier one


def steps(component: Json | None) -> Iterator[Json]:
    """The members of a tokenizer component, with nested sequences laid flat."""
    if component is None:
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        if component.get("type") == "Sequence" and name in component:
            for member in component[name]:
                yield from steps(member)
            return
    yield component


def is_byte_level(decoder: Json | None) -> bool:
    """Tokens are bytes in disguise, and the text is their concatenation."""
    kinds = {step["type"] for step in steps(decoder)} - {"Fuse"}
    return kinds == {"ByteLevel"}


def has_byte_fallback(decoder: Json | None) -> bool:
    return any(step["type"] == "ByteFallback" for step in steps(decoder))


def check_streams(decoder: Json | None) -> None:
    """Raises SpecError for a decoder whose text does not simply grow."""
    for step in steps(decoder):
        if step["type"] in UNSTABLE or (step["type"] == "Strip" and (step["stop"] > 0 or step["start"] > 1)):
            raise SpecError(f"tokenizer.json: the text of a {step['type']} decoder cannot be streamed")


def reader(decoder: Json | None) -> Reader:
    """Token string to its bytes, as in the middle of a text."""
    if is_byte_level(decoder):
        return byte_level
    blanks = [blank for step in steps(decoder) if (blank := _blank(step))]
    fallback = has_byte_fallback(decoder)

    def read(token: str) -> bytes:
        if fallback and (byte := BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in blanks:
            token = token.replace(old, new)
        return token.encode()

    return read


def _blank(step: Json) -> tuple[str, str] | None:
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "BPEDecoder":
        return step["suffix"], " "
    return None


def byte_level(token: str) -> bytes:
    """A token with a character outside of the byte alphabet stands for itself, as the decoder has it."""
    try:
        return bytes(BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 stands for itself, the other bytes for what follows U+0100. Source: the GPT-2 encoder."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
