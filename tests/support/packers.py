"""Weights packed as people's tools pack them, by the published layouts; each returns the tensors and what they mean."""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class PackedWeight(NamedTuple):
    """tensors: by their names behind the module's. meant: the weight F32 [N, K]. header: what the file says of it
    beside them."""

    tensors: dict[str, Tensor]
    meant: Tensor
    header: str | None = None


def words(codes: Tensor, bits: int) -> Tensor:
    """[R, C] of codes -> I32 [R, C · bits / 32] of neighbours in a row, the first in the lowest bits."""
    per = 32 // bits
    groups = torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % per)).unflatten(1, (-1, per))
    found = sum(groups[..., i] << (bits * i) for i in range(per))
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)  # type: ignore[arg-type,operator]


def _codes(weight: Tensor, group: int, bits: int, g_idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scale F16 and zeros [N, G]."""
    most, groups = 2**bits - 1, int(g_idx.max()) + 1
    scale, zero = torch.empty(len(weight), groups), torch.empty(len(weight), groups)
    for i in range(groups):
        part = weight[:, g_idx == i]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale[:, i] = ((high - low) / most).clamp(min=1e-5)
        zero[:, i] = (-low / scale[:, i]).round().clamp(1, most)
    scale = scale.half().float()
    codes = (weight / scale[:, g_idx] + zero[:, g_idx]).round().clamp(0, most)
    return codes, scale, zero


def gptq(weight: Tensor, group: int, bits: int = 4, ordered: bool = False, version: int = 1) -> PackedWeight:
    inputs = weight.shape[1]
    g_idx = torch.arange(inputs) // (inputs if group == -1 else group)
    if ordered:
        g_idx = g_idx[torch.randperm(inputs)]
    codes, scale, zero = _codes(weight, group, bits, g_idx)
    tensors = {
        "qweight": words(codes, bits).t(),  # along K ...
        "qzeros": words(zero.t() - (1 if version == 1 else 0), bits),
        "scales": scale.t().half(),
        "g_idx": g_idx.to(torch.int32),
    }
    return PackedWeight(tensors, (codes - zero[:, g_idx]) * scale[:, g_idx])


def awq(weight: Tensor, group: int) -> PackedWeight:
    inputs = weight.shape[1]
    g_idx = torch.arange(inputs) // (inputs if group == -1 else group)
    codes, scale, zero = _codes(weight, group, 4, g_idx)

    def shuffled(table: Tensor) -> Tensor:
        return words(table.unflatten(1, (-1, 8))[..., torch.tensor(AWQ_ORDER)].flatten(1), 4)

    tensors = {"qweight": shuffled(codes.t()), "qzeros": shuffled(zero.t()), "scales": scale.t().half()}
    return PackedWeight(tensors, (codes - zero[:, g_idx]) * scale[:, g_idx])


def packed_ints(weight: Tensor, group: int) -> PackedWeight:
    """compressed-tensors of four bits without zeros, the inputs in an order of their own."""
    inputs = weight.shape[1]
    g_idx = (torch.arange(inputs) // group)[torch.randperm(inputs)]
    scale = torch.stack([weight[:, g_idx == i].abs().amax(1) / 7 for i in range(inputs // group)], 1)
    codes = (weight / scale[:, g_idx]).round().clamp(-8, 7)
    tensors = {
        "weight_packed": words(codes + 8, 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
        "weight_g_idx": g_idx.to(torch.int32),
    }
    return PackedWeight(tensors, codes * scale[:, g_idx])


def fp8_blocks(weight: Tensor, block: tuple[int, int], name: str = "weight_scale_inv") -> PackedWeight:
    """Fine-grained: a scale for each block of rows and inputs."""
    rows, inputs = weight.shape
    high, wide = -(-rows // block[0]), -(-inputs // block[1])
    scale = torch.empty(high, wide)
    for i in range(high):
        for j in range(wide):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = part.abs().max() / 448
    spread = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :inputs]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return PackedWeight({"weight": codes, name: scale}, codes.float() * spread)


def torchao(weight: Tensor, kind: str, block: tuple[int, int], zero: bool = False) -> PackedWeight:
    """kind: of torchao's classes. block: rows and inputs that share a scale. zero: with points other than 0."""
    header = json.dumps({"_type": kind, "_data": {"block_size": list(block)}})
    codes, scale = fp8_blocks(weight, block, "scale").tensors.values()
    if kind == "Float8Tensor":
        names = {"_weight_qdata": codes, "_weight_scale": scale}
        return PackedWeight(names, codes.float() * _spread(scale, block), header)
    scale = scale * 448 / 127
    point = torch.randint(-9 if zero else 0, 9 if zero else 1, scale.shape, dtype=torch.int8)
    wide, points = _spread(scale, block), _spread(point, block).float()
    whole = (weight / wide + points).round().clamp(-128, 127).to(torch.int8)
    names = {"_weight_qdata": whole, "_weight_scale": scale, "_weight_zero_point": point}
    return PackedWeight(names, (whole.float() - points) * wide, header)


def _spread(table: Tensor, block: tuple[int, int]) -> Tensor:
    return table.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
