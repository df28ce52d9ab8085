"""Blocks of GGUF tensors. Source: the format's layouts (ggml's block_q4_0 and following); N blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.loading.gguf.packing import FORMS, GgufBlocks

NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

Parts = tuple[Tensor, Tensor, Tensor | None]
"""Of N blocks: codes [N, numbers], scale F32 [N, groups], offset the same."""


def unpack_blocks(file: Path, packing: GgufBlocks, shape: tuple[int, ...]) -> Tensor | Codes:
    stored = torch.from_numpy(np.fromfile(file, np.uint8, packing.nbytes, offset=packing.begin))
    if (dtype := NUMBERS.get(packing.kind)) is not None:
        return stored.view(dtype).reshape(shape)
    read, size = READERS[packing.kind]
    codes, scale, offset = read(stored.view(-1, size))
    rows, form = shape[0], FORMS[packing.kind]
    table = torch.tensor(IQ4_NL, dtype=torch.float32) if form.codes == "table4" else None
    return Codes(
        form,
        codes.reshape(rows, -1),
        scale.reshape(rows, -1),
        None if offset is None else offset.reshape(rows, -1),
        table=table,
    )


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, F32 [N, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(stored: Tensor) -> Tensor:
    """Low halves, then high ones."""
    return torch.cat([stored & 15, stored >> 4], -1)


def _bits(stored: Tensor) -> Tensor:
    """Of 4 bytes: 32 bits, the lowest first."""
    return (stored[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _q4_0(b: Tensor) -> Parts:
    d = _half(b, 0)
    return _nibbles(b[:, 2:]), d, -8 * d


def _q4_1(b: Tensor) -> Parts:
    return _nibbles(b[:, 4:]), _half(b, 0), _half(b, 2)


def _q5_0(b: Tensor) -> Parts:
    codes = _nibbles(b[:, 6:]) | (_bits(b[:, 2:6]) << 4)
    return codes.to(torch.int8) - 16, _half(b, 0), None


def _q5_1(b: Tensor) -> Parts:
    codes = _nibbles(b[:, 8:]) | (_bits(b[:, 4:8]) << 4)
    return codes.to(torch.int8), _half(b, 0), _half(b, 2)


def _q8_0(b: Tensor) -> Parts:
    return b[:, 2:].view(torch.int8), _half(b, 0), None


def _iq4_nl(b: Tensor) -> Parts:
    return _nibbles(b[:, 2:]), _half(b, 0), None


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes: eight scales and eight minima of six bits each, F32 [N, 8]."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], 1)
    minima = torch.cat([middle & 63, (high >> 4) | (middle >> 6 << 4)], 1)
    return scales.float(), minima.float()


def _q4_k(b: Tensor) -> Parts:
    scales, minima = _scales_and_minima(b[:, 4:16])
    codes = _nibbles(b[:, 16:].unflatten(1, (4, 32))).flatten(1)
    return codes, _half(b, 0) * scales, -_half(b, 2) * minima


def _q5_k(b: Tensor) -> Parts:
    scales, minima = _scales_and_minima(b[:, 4:16])
    low = _nibbles(b[:, 48:].unflatten(1, (4, 32))).flatten(1)
    fifth = (b[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1  # [N, 8 groups, 32]
    return (low | (fifth.flatten(1) << 4)).to(torch.int8), _half(b, 0) * scales, -_half(b, 2) * minima


def _q6_k(b: Tensor) -> Parts:
    low = _nibbles(b[:, :128].unflatten(1, (2, 64)))  # [N, 2, 128]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (b[:, 128:192].unflatten(1, (2, 1, 32)) >> shifts) & 3  # [N, 2, 4, 32]
    codes = low | (high.flatten(2) << 4)
    return codes.flatten(1).to(torch.int8) - 32, _half(b, 208) * b[:, 192:208].view(torch.int8).float(), None


READERS: Mapping[str, tuple[Callable[[Tensor], Parts], int]] = {
    "Q4_0": (_q4_0, 18),
    "Q4_1": (_q4_1, 20),
    "Q5_0": (_q5_0, 22),
    "Q5_1": (_q5_1, 24),
    "Q8_0": (_q8_0, 34),
    "Q4_K": (_q4_k, 144),
    "Q5_K": (_q5_k, 176),
    "Q6_K": (_q6_k, 210),
    "IQ4_NL": (_iq4_nl, 18),
}
