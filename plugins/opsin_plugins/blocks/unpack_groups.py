"""Codes with scales of groups, as safetensors checkpoints pack them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.loading.quantized.packings import (
    AwqPacking,
    BnbPacking,
    GptqPacking,
    Packed,
    PackedInts,
    Part,
    PlainCodes,
)
from opsin_plugins.spec import CodeForm, SpecError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column each four bits of a word hold, the lowest first

Stored = Callable[[Part], Tensor]


def unpack_gptq(packing: GptqPacking, read: Stored) -> Tensor | Codes:
    parts, bits = packing.parts, packing.bits
    codes = unpacked(read(parts["qweight"]), bits, 0).t().contiguous()
    scale = read(parts["scales"]).float().t()
    zero = unpacked(read(parts["qzeros"]), bits, 1)[:, : len(codes)].t().float() + packing.shift
    return grouped(packing, codes, scale, zero, packing.group, _g_idx(parts, read))


def unpack_awq(packing: AwqPacking, read: Stored) -> Tensor | Codes:
    parts = packing.parts
    codes, scale = _awq(read(parts["qweight"])).t().contiguous(), read(parts["scales"]).float().t()
    zero = _awq(read(parts["qzeros"])).t().float() if "qzeros" in parts else torch.full_like(scale, 8.0)
    return grouped(packing, codes, scale, zero, packing.group, None)


def unpack_ints(packing: PackedInts, read: Stored) -> Tensor | Codes:
    parts, bits, middle = packing.parts, packing.bits, 2 ** (packing.bits - 1)
    codes = unpacked(read(parts["packed"]), bits, 1)
    scale = _of_rows(read(parts["scale"]).float(), len(codes), len(codes))
    zero = torch.full_like(scale, middle)
    if "zero" in parts:
        zero = unpacked(read(parts["zero"]), bits, 0)[: len(codes)].float()
    return grouped(packing, codes, scale, zero, packing.group, _g_idx(parts, read))


def unpack_plain(packing: PlainCodes, read: Stored) -> Tensor | Codes:
    parts, (rows, inputs) = packing.parts, packing.block
    codes, scale = read(parts["weight"]), read(parts["scale"]).float() * packing.factor
    scale = _of_rows(scale, rows, len(codes))
    if "zero" not in parts:
        return _with_scales(packing.form, codes, scale, None, inputs)
    zero = _of_rows(read(parts["zero"]).float(), rows, len(codes))
    return _with_scales(packing.form, codes, scale, -zero * scale, inputs)


def unpack_bnb(packing: BnbPacking, read: Stored) -> Tensor | Codes:
    """Blocks are of the flat weight: of groups where rows are whole blocks, else they are read as floats."""
    parts, (rows, inputs) = packing.parts, packing.shape
    stored, absmax = read(parts["weight"]).flatten(), read(parts["absmax"])
    table = read(parts["table"]).float()
    if "nested_table" in parts:
        nested = read(parts["nested_absmax"]).float().repeat_interleave(packing.nested_block)[: len(absmax)]
        absmax = read(parts["nested_table"]).float()[absmax.int()] * nested + packing.nested_offset
    codes = torch.stack([stored >> 4, stored & 15], 1).flatten()[: rows * inputs]
    if packing.form is not None:
        return Codes(packing.form, codes.view(rows, inputs), absmax.float().view(rows, -1), table=table)
    scale = absmax.float().repeat_interleave(packing.block)[: rows * inputs]
    return (table[codes.int()] * scale).view(rows, inputs)


def unpacked(words: Tensor, bits: int, axis: int) -> Tensor:
    """I32 words of 32 / bits neighbours along an axis, the lowest bits first, as U8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    found = (words.unsqueeze(axis + 1) >> shifts.view(-1, *(1,) * (words.dim() - axis - 1))) & (2**bits - 1)
    return found.to(torch.uint8).flatten(axis, axis + 1)


def _awq(words: Tensor) -> Tensor:
    """[R, N / 8] -> U8 [R, N]."""
    found = unpacked(words, 4, 1).unflatten(1, (-1, 8))
    out = torch.empty_like(found)
    out[..., torch.tensor(AWQ_ORDER)] = found
    return out.flatten(1)


def _g_idx(parts: Mapping[str, Part], read: Stored) -> Tensor | None:
    return read(parts["g_idx"]).long() if "g_idx" in parts else None


def _of_rows(scale: Tensor, rows: int, count: int) -> Tensor:
    """One number, [N], [N, G] or of blocks of rows, as [N, G]."""
    scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    return scale.repeat_interleave(rows, 0)[:count] if len(scale) != count else scale


def grouped(
    packing: Packed, codes: Tensor, scale: Tensor, zero: Tensor, group: int, g_idx: Tensor | None
) -> Tensor | Codes:
    """codes U8 [N, K] above 0; scale and zero F32 [N, G]."""
    eight = packing.form is not None and packing.form.codes == "int8"
    if eight:
        codes, zero = (codes.int() - 128).to(torch.int8), zero - 128
    offset = -zero * scale
    in_order = torch.arange(codes.shape[1]) // group
    if g_idx is None or torch.equal(g_idx, in_order):
        order = torch.arange(codes.shape[1]) if packing.form is not None and packing.form.ordered else None
        return _with_scales(packing.form, codes, scale, offset, group, order)
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= scale.shape[1]:
        raise SpecError(f"{packing.parts['g_idx'].key} names groups that are not there")
    if packing.form is None:
        return codes.float() * scale[:, g_idx] + offset[:, g_idx]
    order = g_idx.argsort(stable=True)
    if not packing.form.ordered or not torch.equal(g_idx[order], in_order):
        raise SpecError(f"{packing.parts['g_idx'].key} orders inputs in another way than desc_act would")
    return _with_scales(packing.form, codes[:, order].contiguous(), scale, offset, group, order)


def _with_scales(
    form: CodeForm | None,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    group: int,
    order: Tensor | None = None,
) -> Tensor | Codes:
    """Groups of the file as those of the form, which are the same or smaller; None: as floats."""
    size = 1 if form is None else form.group
    which = torch.arange(0, codes.shape[1], size) // group
    scale = scale[:, which]
    offset = None if offset is None else offset[:, which]
    if form is None:
        meant = codes.float() * scale
        return meant if offset is None else meant + offset
    if not form.offset and offset is not None:
        assert not bool(offset.any())
        offset = None
    return Codes(form, codes, scale, offset, order)
