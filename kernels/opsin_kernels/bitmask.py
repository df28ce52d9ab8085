"""x_RV = -inf where bit v of mask_R is 0. R rows, V vocabulary, 32 tokens a word, the lowest bit first.

The layout that grammar compilers give (xgrammar, llguidance): one bit a token, set where the token may follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels.cpu import rows
from opsin_kernels.dispatch import uses_kernels


def forbid_(logits: Tensor, mask: Tensor) -> None:
    """logits [R, V] with dense rows, in place; mask I32 [R, ceil(V / 32)]."""
    if uses_kernels(logits):
        from opsin_kernels.gpu import bitmask as gpu

        gpu.forbid_(logits, mask)
    elif rows.can_forbid(logits, mask):
        rows.forbid_(logits, mask)
    else:
        forbid_ref_(logits, mask)


def forbid_ref_(logits: Tensor, mask: Tensor) -> None:
    """The definition of `forbid_`."""
    bits = torch.arange(32, device=mask.device, dtype=torch.int32)
    allowed = ((mask[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed == 0, -torch.inf)
