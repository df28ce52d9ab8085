"""The linear product is the same whichever way it runs, and has the same gradients."""

from __future__ import annotations

import pytest
import torch

from opsin_kernels.linear import linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (6, 12), (7, 40)])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17])
def test_linear_equals_its_definition(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    offset = torch.randn(outputs) if bias else None
    out, expected = linear(x, weight, offset), x @ weight.T + (0 if offset is None else offset)
    assert out.is_contiguous()
    assert torch.allclose(out, expected, atol=1e-5)
    direction = torch.randn(rows, outputs)
    got, wanted = (torch.autograd.grad(y, (x, weight), direction) for y in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
