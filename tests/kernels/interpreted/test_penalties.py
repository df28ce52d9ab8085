"""The kernel of the penalties against its definition: only the places concerned change."""

from __future__ import annotations

import pytest
import torch

from opsin_kernels import penalties
from opsin_kernels.gpu import penalties as gpu_penalties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 256, 300])
def test_places_change_as_defined(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    logits = torch.randn(3, 150).to(dtype)
    at = torch.randperm(450)[:count]
    where = torch.stack([at // 150, at % 150])
    what = torch.stack([0.5 + torch.rand(count), torch.randn(count)])
    ours, theirs = logits.clone(), logits.clone()
    gpu_penalties.penalize_(ours, where, what)
    penalties.penalize_ref_(theirs, where, what)
    # A GPU divides within two units in the last place of float32, which moves a rounding to 16 bit now and then.
    assert torch.allclose(ours.float(), theirs.float(), atol=1e-6, rtol=torch.finfo(dtype).eps)
    assert dtype == torch.float32 or (ours == theirs).float().mean() > 0.99
    assert (ours != logits).sum() <= count
    assert not torch.equal(ours, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_too_large_stays_a_number(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    logits = torch.tensor([[most, -most, float("-inf"), float("nan"), most / 50]]).to(dtype)
    where, what = (
        torch.tensor([[0] * 5, [0, 1, 2, 3, 4]]),
        torch.tensor([[0.01, 100.0, 0.01, 0.01, 0.01], [-100.0] * 5]),
    )
    ours, theirs = logits.clone(), logits.clone()
    gpu_penalties.penalize_(ours, where, what)
    penalties.penalize_ref_(theirs, where, what)
    assert torch.equal(ours.nan_to_num(-1, 1, 2), theirs.nan_to_num(-1, 1, 2))
    assert ours[0, [0, 4]].tolist() == [most, most]
    assert ours[0, [1, 2]].tolist() == [float("-inf")] * 2
    assert ours[0, 3].isnan()
