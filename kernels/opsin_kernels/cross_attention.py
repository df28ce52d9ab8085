"""out_RHD = softmax(q_RHD · k_LKD / √D) · v_LKD over the visual tokens of each run. R query rows, L visual tokens, K
KV heads.

Cross-attention. Rows are queries in runs that see the same visual tokens, all of them; their keys and values lie in a
pool [P, 2K, D], keys first, found by slots. Source: cross-attention layers of arXiv 2407.21783, §7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.layout import Bounds
from opsin_kernels.transfer import on_device


@dataclass(frozen=True)
class CrossRun:
    """`queries` rows that follow each other and see the visual tokens at `slots` I64 [L]."""

    queries: int
    slots: Tensor


@dataclass
class CrossRuns:
    """The runs of one packed batch, in order. given: their numbers, where they lie on the device already (a recorded
    step's buffers)."""

    runs: Sequence[CrossRun]
    given: Bounds | None = None

    @cached_property
    def bounds(self) -> Bounds:
        """As the kernel takes it, on the slots' device: a page has one row. Built once a step, not once a layer."""
        if self.given is not None:
            return self.given
        counts, lengths = [run.queries for run in self.runs], [len(run.slots) for run in self.runs]
        device = self.runs[0].slots.device
        numbers = on_device([*accumulate(counts, initial=0), *lengths], torch.int32, device)
        table = torch.zeros((len(counts), max(lengths)), dtype=torch.int32, device=device)
        for line, run in zip(table, self.runs, strict=True):
            line[: len(run.slots)] = run.slots
        starts, sizes = numbers[: len(counts) + 1], numbers[len(counts) + 1 :]
        return Bounds(starts, sizes, table, max(counts), max(lengths))


def cross_attention(q: Tensor, cross_kv: Tensor, runs: CrossRuns) -> Tensor:
    """q [R, H, D]; cross_kv [P, 2K, D]; the runs' queries sum to R. Returns [R, H·D]. Differentiable."""
    if uses_kernels(q) and not (torch.is_grad_enabled() and (q.requires_grad or cross_kv.requires_grad)):
        return _kernel(q, cross_kv, runs)
    return cross_attention_ref(q, cross_kv, runs)


def cross_attention_ref(q: Tensor, cross_kv: Tensor, runs: CrossRuns) -> Tensor:
    """The definition of `cross_attention`."""
    parts = []
    for rows, run in zip(q.split([run.queries for run in runs.runs]), runs.runs, strict=True):
        k, v = cross_kv.index_select(0, run.slots).transpose(0, 1).chunk(2)  # [K, L, D]
        groups = rows.shape[1] // len(k)
        # The query group is folded into the query length, as in decode: no copy of keys and values.
        grouped = rows.view(run.queries, len(k), groups, -1).permute(1, 0, 2, 3).flatten(1, 2)
        out = F.scaled_dot_product_attention(grouped[None], k[None], v[None])[0]
        parts.append(out.view(len(k), run.queries, groups, -1).permute(1, 0, 2, 3).flatten(1))
    return torch.cat(parts)


def _kernel(q: Tensor, cross_kv: Tensor, runs: CrossRuns) -> Tensor:
    """Each run is a sequence whose pages have one row: its slots."""
    from opsin_kernels.gpu import attention as gpu

    heads = cross_kv.shape[1] // 2
    return gpu.attention(q, cross_kv[:, :heads], cross_kv[:, heads:], runs.bounds, 1, causal=False).flatten(1)
