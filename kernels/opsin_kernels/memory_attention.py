"""out_RHD = softmax(q_RHD · k_LKD / √D) · v_LKD over the memory rows of each run. R query rows, L memory rows, K KV
heads.

Cross-attention to visual tokens. Rows are queries in runs that see the same memory, all of it; memory rows lie in a
pool [P, 2K, D], keys first, found by slots. Source: cross-attention layers of arXiv 2407.21783, §7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """`queries` rows that follow each other and see the memory rows at `slots` I64 [L]."""

    queries: int
    slots: Tensor


def memory_attention(q: Tensor, memory: Tensor, runs: Sequence[Run]) -> Tensor:
    """q [R, H, D]; memory [P, 2K, D]; the runs' queries sum to R. Returns [R, H·D]. Differentiable."""
    parts = []
    for rows, run in zip(q.split([run.queries for run in runs]), runs, strict=True):
        k, v = memory.index_select(0, run.slots).transpose(0, 1).chunk(2)  # [K, L, D]
        groups = rows.shape[1] // len(k)
        # The query group is folded into the query length, as in decode: no copy of keys and values.
        grouped = rows.view(run.queries, len(k), groups, -1).permute(1, 0, 2, 3).flatten(1, 2)
        out = F.scaled_dot_product_attention(grouped[None], k[None], v[None])[0]
        parts.append(out.view(len(k), run.queries, groups, -1).permute(1, 0, 2, 3).flatten(1))
    return torch.cat(parts)
