"""Which tokens the rows of a step may draw, where grammars say so."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from opsin_plugins.spec import I32
from opsin_server.engine.scheduling.plan import Chunk
from opsin_server.engine.scheduling.sequence import GuideError


@dataclass(frozen=True)
class Masks:
    """words I32 [M, ceil(V / 32)], a bit a token; rows that no grammar guides may draw all. refused: rows whose grammar
    has failed, and why: what they draw is no answer."""

    words: Tensor
    refused: dict[int, str] = field(default_factory=dict)


def masks_of(chunks: Seq[Chunk], words: int) -> Masks | None:
    """chunks: those that draw a token, in the order of the logits, when all that they drew before is known. None:
    nothing is guided."""
    if all(chunk.sequence.guide is None for chunk in chunks):
        return None
    table = np.empty((len(chunks), words), np.int32)
    masks = Masks(torch.from_numpy(table))
    address, size = masks.words.data_ptr(), table.strides[0]
    for row, chunk in enumerate(chunks):
        guide = chunk.sequence.guide
        if guide is None:
            table[row] = -1
            continue
        try:
            guide.fill(address + row * size, size)
            if unwanted := unwanted_ends(chunk):
                _take_away(table[row], unwanted)
        except GuideError as error:
            masks.refused[row] = str(error)
            table[row] = -1
    for row, bits in enumerate(np.bitwise_or.reduce(table, 1).tolist()):
        if not bits:
            masks.refused[row] = "no token may follow"
            table[row] = -1
    return masks


def _take_away(words: I32, unwanted: Collection[int]) -> None:
    """Their bits, unless no other is set."""
    rest = words.view(np.uint32).copy()
    for token in unwanted:
        rest[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    if rest.any():
        words[:] = rest.view(np.int32)


def unwanted_ends(chunk: Chunk) -> Collection[int]:
    """What would end the answer too early."""
    return chunk.sequence.eos if chunk.draw < chunk.sequence.min_tokens else ()
