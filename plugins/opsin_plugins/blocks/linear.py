"""The one linear layer: a base weight in parts (dense or quantized), a bias, and the place of adapters.

A fused linear (q, k, v) has one output segment a published layer. A dense weight holds all segments in one part; a
quantized one has a part a segment, since segments may be quantized with different orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.linear import linear

Quantize = Literal["none", "int8"]


class DensePart(nn.Module):
    """y = x · Wᵀ. weight [out, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)

    def fill(self, segments: Sequence[Tensor]) -> None:
        at = 0
        for tensor in segments:
            self.weight.data[at : at + len(tensor)].copy_(tensor)
            at += len(tensor)


class Int8Part(nn.Module):
    """y = (x · Qᵀ) * scale. Q I8 [out, in], scale F32 [out]: symmetric, one scale a row, rounded to nearest.

    The definition, differentiable in x: it keeps the seam honest until the packed formats come.
    """

    quantized: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("quantized", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(outputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized.to(x.dtype)) * self.scale.to(x.dtype)

    def fill(self, segment: Tensor) -> None:
        weight = segment.to(self.scale.device, torch.float32)
        self.scale.copy_(weight.abs().amax(1).clamp(min=1e-12) / 127)
        self.quantized.copy_((weight / self.scale[:, None]).round().clamp(-127, 127))


class AdapterSlots(nn.Module):
    """Low-rank additions of several adapters side by side: y += (x · A, masked to the row's slot) · B.

    a [in, S·R], b [S·R, out] for S slots of R columns; slot 0 is the base model and has none, slot s owns the columns
    (s - 1)·R to s·R. b includes the adapter's scale. One shrink and one expand whatever the mix: what decode wants.
    """

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.rank = rank

    def forward(self, x: Tensor, slot: Tensor) -> Tensor:
        """x [T, in], slot I64 [T] -> [T, out]."""
        owner = torch.arange(self.a.shape[1], device=x.device) // self.rank + 1
        return ((x @ self.a) * (slot[:, None] == owner)) @ self.b


class Linear(nn.Module):
    """segments: output sizes, one a published layer that is fused here."""

    bias: nn.Parameter | None

    def __init__(self, inputs: int, segments: Sequence[int], bias: bool, quantize: Quantize = "none") -> None:
        super().__init__()
        self.inputs, self.outputs, self.segments = inputs, sum(segments), list(segments)
        self.dense = DensePart(inputs, self.outputs) if quantize == "none" else None
        self.quantized = nn.ModuleList(Int8Part(inputs, n) for n in segments) if quantize == "int8" else None
        self.bias = nn.Parameter(torch.empty(self.outputs), requires_grad=False) if bias else None
        self.slots: AdapterSlots | None = None

    def forward(self, x: Tensor, slot: Tensor | None = None) -> Tensor:
        """x [T, in] -> [T, out]. slot I64 [T]: each row's adapter slot."""
        if self.dense is not None:
            out = linear(x, self.dense.weight, self.bias)
        else:
            assert self.quantized is not None
            out = torch.cat([part(x) for part in self.quantized], -1)
            out = out if self.bias is None else out + self.bias
        if self.slots is not None and slot is not None:
            out = out + self.slots(x, slot)
        return out

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Takes the published weights of all segments, in order; some families publish the fused tensor itself."""
        if self.dense is not None:
            self.dense.fill(tensors)
            return
        assert self.quantized is not None
        rows = torch.cat(list(tensors)).split(self.segments)
        for part, tensor in zip(self.quantized, rows, strict=True):
            part.fill(tensor)  # type: ignore[operator]
