"""Rounding that makes up for its own errors on data. Source: "GPTQ", arXiv 2210.17323.

A column of the weight is rounded at a time, and the columns that are yet to be rounded take over what it lost, as far
as the inputs of the two go together: their second moments H = E[x xᵀ] say how far.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean second moment, added to each: inputs that were seen little are trusted little
ATTEMPTS = 5  # to factor the moments, each with ten times the damping
BLOCK = 128  # columns, behind which the errors of all of them are spread at once

Round = Callable[[Tensor, int], Tensor]
"""Numbers of column j [N] -> the nearest that the scheme can hold."""


class Moments:
    """Second moments of a linear's inputs, K · K numbers whatever is seen. Sums over rows [T, K]."""

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        self.total, self.count = torch.zeros(inputs, inputs, device=device), 0

    def add(self, rows: Tensor) -> None:
        rows = rows.float()
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)

    def of_columns(self, order: Tensor) -> Tensor:
        """As another order of the inputs has them: input i of it is ours number order[i]."""
        return self.total[order][:, order]


def output_errors(error: Tensor, moments: Tensor) -> Tensor:
    """Errors of a weight [N, K] -> the sum of squares, over all that was seen, of what each output is off by [N]."""
    return ((error @ moments) * error).sum(1)


def compensation(moments: Tensor) -> Tensor:
    """Moments [K, K] -> U upper triangular, of which row j says how the error of column j is spread over those behind
    it: UᵀU is the inverse of the damped moments."""
    mean = moments.diagonal().mean().clamp(min=1e-12)
    for attempt in range(ATTEMPTS):
        damped = moments.clone()
        damped.diagonal().add_(mean * DAMPING * 10**attempt)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed and (found := torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)).info == 0:
            return found.L
    return torch.eye(len(moments), device=moments.device)  # nothing is known of what goes together


def compensated(weight: Tensor, factor: Tensor, nearest: Round) -> Tensor:
    """weight F32 [N, K] rounded column by column, the numbers that are meant. factor: of `compensation`."""
    columns = weight.T.clone(memory_format=torch.contiguous_format)  # a column's numbers behind each other
    meant = torch.empty_like(columns)
    for start in range(0, len(columns), BLOCK):
        block, rows = columns[start : start + BLOCK], factor[start : start + BLOCK]
        errors, own = torch.empty_like(block), rows[:, start : start + BLOCK]
        for j in range(len(block)):
            meant[start + j] = nearest(block[j], start + j)
            errors[j] = (block[j] - meant[start + j]) / own[j, j]
            block[j + 1 :].addr_(own[j, j + 1 :], errors[j], alpha=-1)
        columns[start + BLOCK :].addmm_(rows[:, start + BLOCK :].T, errors, alpha=-1)
    return meant.T
