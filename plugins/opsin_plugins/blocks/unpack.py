"""What a checkpoint has packed, as codes or numbers; one function for each kind of packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opsin_plugins.blocks.codes import Codes, joined_codes
from opsin_plugins.blocks.unpack_gguf import unpack_blocks
from opsin_plugins.blocks.unpack_groups import (
    Stored,
    unpack_awq,
    unpack_bnb,
    unpack_gptq,
    unpack_ints,
    unpack_plain,
)
from opsin_plugins.loading.gguf.packing import GgufBlocks, Joined
from opsin_plugins.loading.quantized.packings import AwqPacking, BnbPacking, GptqPacking, PackedInts, PlainCodes
from opsin_plugins.loading.weight_matching import reordered
from opsin_plugins.spec import SpecError, TensorInfo

Read = Callable[[str, TensorInfo], Tensor]
"""A stored tensor, by its key and what is known of it."""

UNPACK: Mapping[type, Callable[[Any, Stored], Tensor | Codes]] = {
    AwqPacking: unpack_awq,
    BnbPacking: unpack_bnb,
    GptqPacking: unpack_gptq,
    PackedInts: unpack_ints,
    PlainCodes: unpack_plain,
}


def unpack(key: str, info: TensorInfo, read: Read) -> Tensor | Codes:
    """The weight under a key. Raises SpecError for scales that are no numbers."""
    packing = info.packing
    if isinstance(packing, Joined):
        return _joined([unpack(key, part, read) for part in packing.parts], packing)
    if isinstance(packing, GgufBlocks):
        found = _in_published_order(unpack_blocks(info.file, packing, info.shape), packing)
    else:
        found = UNPACK[type(packing)](packing, lambda part: read(part.key, part.info))
    if isinstance(found, Codes):
        parts = (found.scale, found.offset)
        if not all(part is None or bool(part.isfinite().all()) for part in parts):
            raise SpecError(f"{key}: {info.dtype} with scales that are no numbers (NaN or infinity)")
    return found


def _in_published_order(found: Tensor | Codes, packing: GgufBlocks) -> Tensor | Codes:
    if packing.order is None:
        return found
    if isinstance(found, Codes):
        return found.of_rows(lambda rows: reordered(rows, packing.order, torch.permute))
    numbers: Tensor = reordered(found, packing.order, torch.permute)
    return numbers


def _joined(parts: Sequence[Tensor | Codes], packing: Joined) -> Tensor | Codes:
    codes = [part for part in parts if isinstance(part, Codes)]
    if packing.form is not None and len(codes) == len(parts):
        return joined_codes(codes)
    numbers = [part.dequantized() if isinstance(part, Codes) else part.float() for part in parts]
    return torch.cat(numbers) if packing.axis is None else torch.stack(numbers, packing.axis)
