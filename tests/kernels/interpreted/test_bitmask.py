"""The kernel of the grammar mask against its definition, and both against bits set one by one."""

from __future__ import annotations

import pytest
import torch

from opsin_kernels import bitmask
from opsin_kernels.gpu import bitmask as gpu_bitmask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 31, 64, 5000])
def test_only_tokens_whose_bit_is_set_stay(vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocabulary)
    allowed = torch.rand(3, vocabulary) < 0.5
    words = torch.zeros(3, -(-vocabulary // 32), dtype=torch.int64)
    for row, token in allowed.nonzero().tolist():
        words[row, token // 32] |= 1 << token % 32
    mask = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)  # bit 31 is the sign
    wide = torch.randn(3, vocabulary + 9).to(dtype)
    expected = wide.clone()
    expected[:, :vocabulary].masked_fill_(~allowed, -torch.inf)
    for forbid in (bitmask.forbid_ref_, gpu_bitmask.forbid_):
        logits = wide.clone()
        forbid(logits[:, :vocabulary], mask)
        assert torch.equal(logits, expected)
