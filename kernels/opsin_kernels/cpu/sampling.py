"""Tokens drawn from rows of logits, by cpu/sampling.c: one call where torch needs many."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels.cpu.native import can_run, differentiates, loaded


def can_draw(logits: Tensor) -> bool:
    """Rows of any width, as far apart as they like."""
    dense = logits.dtype == torch.float32 and logits.dim() == 2 and logits.stride(1) == 1 and logits.shape[1] > 0
    return dense and not differentiates(logits) and can_run(logits)


def draw(logits: Tensor, settings: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `opsin_kernels.sampling.sample`. settings F64 [B, 5], dense; None: all rows are greedy."""
    (count, width), library = logits.shape, loaded()
    tokens, largest = torch.empty(count, dtype=torch.int64), torch.empty(count)
    scratch = torch.empty(library.scratch_bytes(width), dtype=torch.uint8)
    how = None if settings is None else settings.data_ptr()
    pointers = (tokens.data_ptr(), largest.data_ptr(), logits.data_ptr(), how, scratch.data_ptr())
    library.draw_rows(*pointers, count, width, logits.stride(0))
    return tokens, largest
