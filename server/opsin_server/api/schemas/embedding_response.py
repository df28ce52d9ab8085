"""What goes out on /v1/embeddings, field by field as OpenAI names them."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Literal

import msgspec


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """embedding: numbers, or their bytes (F32, little-endian) in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(msgspec.Struct):
    data: list[msgspec.Raw]  # each an Embedding
    model: str
    usage: EmbeddingUsage
    object: str = "list"


encode = msgspec.json.Encoder().encode


def encoded(index: int, data: bytes, form: Literal["float", "base64"] | None) -> msgspec.Raw:
    """One embedding. data: F32, little-endian."""
    if form == "base64":
        return msgspec.Raw(encode(Embedding(index, base64.b64encode(data).decode())))
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return msgspec.Raw(encode(Embedding(index, numbers.tolist())))
