"""x_RV = (x > 0 ? x / factor : x · factor) - shift, at a few places of logits_RV. R rows, V vocabulary.

Every rule that a request may lay on single tokens is of this form: repetition penalty (CTRL, arXiv 1909.05858) is the
factor; frequency and presence penalty and logit bias, as the OpenAI API defines them, add up to the shift. Only the
tokens concerned are touched, not whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.transfer import on_device


@dataclass
class LogitAdjustments:
    """Places of logits, each at most once, and what happens there."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    shifts: list[float] = field(default_factory=list)

    def to(self, device: torch.device) -> DeviceAdjustments | None:
        """None: there are none."""
        if not self.rows:
            return None
        where = on_device([self.rows, self.tokens], torch.int64, device)
        return DeviceAdjustments(where, on_device([self.factors, self.shifts], torch.float32, device))


@dataclass(frozen=True)
class DeviceAdjustments:
    """Places on a device. where I64 [2, N]: rows and tokens; what F32 [2, N]: factors and shifts."""

    where: Tensor
    what: Tensor


def penalized(logits: Tensor, placed: DeviceAdjustments | None) -> Tensor:
    """logits [R, V] -> [R, V]; the input where nothing is changed, else a copy."""
    if placed is None:
        return logits
    changed, where, what = logits.clone(), placed.where, placed.what
    if uses_kernels(logits):
        from opsin_kernels.gpu import penalties as gpu

        gpu.penalize_(changed, where, what)
    else:
        penalize_ref_(changed, where, what)
    return changed


def penalize_ref_(logits: Tensor, where: Tensor, what: Tensor) -> None:
    """The definition, in place. where I64 [2, N], what F32 [2, N]: as in `DeviceAdjustments`. What is too large for the
    type becomes its largest number, not infinity, beside which nothing else could be drawn."""
    rows, tokens = where
    factors, shifts = what
    x = logits[rows, tokens].float()
    x = torch.where(x > 0, x / factors, x * factors) - shifts
    logits[rows, tokens] = x.clamp(max=torch.finfo(logits.dtype).max).to(logits.dtype)
