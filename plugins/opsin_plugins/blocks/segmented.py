"""A weight whose rows are stored in several ways: the published layers that a linear fuses need not be alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.weight_format import Form, WeightFormat


class Segmented(WeightFormat):
    """segments: how many rows each has, and its format."""

    name = "mixed"

    def __init__(self, inputs: int, outputs: int, segments: Sequence[tuple[int, Form]]) -> None:
        super().__init__(inputs, outputs)
        self.parts = nn.ModuleList([form(inputs, count) for count, form in segments])
        ends = list(accumulate(count for count, _ in segments))
        self._starts = dict(zip([0, *ends], range(len(ends)), strict=False))
        self._counts = [count for count, _ in segments]

    def fill(self, start: int, weight: Tensor | Codes) -> None:
        self._part(self._starts[start]).fill(0, weight)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.cat([self._part(i).matmul(x) for i in range(len(self.parts))], -1)
        return out if bias is None else out + bias

    def input_gradient(self, gradient: Tensor) -> Tensor:
        found = [self._part(i).input_gradient(g) for i, g in enumerate(gradient.split(self._counts, 1))]
        return torch.stack(found).sum(0)

    def dequantized(self) -> Tensor:
        return torch.cat([self._part(i).dequantized() for i in range(len(self.parts))])

    def rows(self, ids: Tensor) -> Tensor:
        return self.dequantized()[ids]

    def _part(self, i: int) -> WeightFormat:
        part = self.parts[i]
        assert isinstance(part, WeightFormat)
        return part
