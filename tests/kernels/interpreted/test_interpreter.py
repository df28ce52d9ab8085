"""What the tests put right in Triton's interpreter."""

from __future__ import annotations

import torch

from support import bfloat16


def test_the_interpreter_rounds_to_bfloat16_as_torch_does() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, torch.nan, -0.0, 3e38])])
    ours = torch.from_numpy(bfloat16.rounded(x.numpy()).view("int16")).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(7), x.bfloat16().nan_to_num(7))
