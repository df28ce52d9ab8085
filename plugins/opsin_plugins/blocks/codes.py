"""A packed weight while it is loaded: its codes one a number, whatever packed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opsin_plugins.spec import CodeForm


@dataclass(frozen=True)
class Codes:
    """Of a weight [N, K]; see CodeForm. codes [N, K]: U8 of four bits, I8, F8 (e4m3). scale F32 [N, K / group], offset
    the same, or None. order I64 [K]: column k of codes is input order[k]; None: input k. table F32 [16]: what codes
    name, or None."""

    form: CodeForm
    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None
    order: Tensor | None = None
    table: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def of_rows(self, chosen: Callable[[Tensor], Tensor]) -> Codes:
        """With rows left out, or put into another order."""
        offset = None if self.offset is None else chosen(self.offset)
        return replace(self, codes=chosen(self.codes), scale=chosen(self.scale), offset=offset)

    def dequantized(self) -> Tensor:
        """F32 [N, K], inputs in their own order."""
        values = self.codes.float() if self.table is None else self.table[self.codes.int()]
        values = values.unflatten(1, (self.scale.shape[1], -1)) * self.scale[..., None]
        if self.offset is not None:
            values += self.offset[..., None]
        values = values.flatten(1)
        if self.order is None:
            return values
        out = torch.empty_like(values)
        out[:, self.order] = values
        return out


def joined_codes(parts: Sequence[Codes]) -> Codes:
    """The rows of codes of one form, which have no order of their own, behind each other."""
    first = parts[0]
    offset = None if first.offset is None else torch.cat([part.offset for part in parts if part.offset is not None])
    return replace(
        first, codes=torch.cat([p.codes for p in parts]), scale=torch.cat([p.scale for p in parts]), offset=offset
    )
