"""What a checkpoint has packed, as codes or numbers; one function for each kind of packing."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.unpack_gguf import unpack_blocks
from opsin_plugins.blocks.unpack_groups import unpack_awq, unpack_bnb, unpack_gptq, unpack_ints, unpack_plain
from opsin_plugins.loading.gguf.packing import GgufBlocks
from opsin_plugins.loading.quantized.packings import AwqPacking, BnbPacking, GptqPacking, PackedInts, PlainCodes
from opsin_plugins.loading.weight_matching import reordered
from opsin_plugins.spec import Packing, SpecError, TensorInfo

Read = Callable[[str, TensorInfo], Tensor]
"""A stored tensor, by its key and what is known of it."""


def unpack(key: str, info: TensorInfo, read: Read) -> Tensor | Codes:
    """The weight under a key. Raises SpecError for scales that are no numbers."""
    assert info.packing is not None
    found = _unpacked(info.packing, info, read)
    if isinstance(found, Codes):
        parts = (found.scale, found.offset)
        if not all(part is None or bool(part.isfinite().all()) for part in parts):
            raise SpecError(f"{key}: {info.dtype} with scales that are no numbers (NaN or infinity)")
    return found


@singledispatch
def _unpacked(packing: Packing, info: TensorInfo, read: Read) -> Tensor | Codes:
    raise NotImplementedError(type(packing))


@_unpacked.register
def _(packing: GptqPacking, info: TensorInfo, read: Read) -> Tensor | Codes:
    return unpack_gptq(packing, lambda part: read(*part))


@_unpacked.register
def _(packing: AwqPacking, info: TensorInfo, read: Read) -> Tensor | Codes:
    return unpack_awq(packing, lambda part: read(*part))


@_unpacked.register
def _(packing: PackedInts, info: TensorInfo, read: Read) -> Tensor | Codes:
    return unpack_ints(packing, lambda part: read(*part))


@_unpacked.register
def _(packing: PlainCodes, info: TensorInfo, read: Read) -> Tensor | Codes:
    return unpack_plain(packing, lambda part: read(*part))


@_unpacked.register
def _(packing: BnbPacking, info: TensorInfo, read: Read) -> Tensor | Codes:
    return unpack_bnb(packing, lambda part: read(*part))


@_unpacked.register
def _(packing: GgufBlocks, info: TensorInfo, read: Read) -> Tensor | Codes:
    found = unpack_blocks(info.file, packing, info.shape)
    if packing.order is None:
        return found
    if isinstance(found, Codes):
        return found.of_rows(lambda rows: reordered(rows, packing.order, torch.permute))
    return reordered(found, packing.order, torch.permute)
