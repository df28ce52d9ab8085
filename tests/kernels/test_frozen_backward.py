"""Backward passes that the definitions have of their own: as autograd over the same operations has them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from opsin_kernels.activations import ACTIVATIONS, Activation, gated_ref
from opsin_kernels.rms_norm import rms_norm_ref

FLOOR = torch.tensor(1e-6)


def plain_rms_norm(x: Tensor, weight: Tensor, one_plus: bool) -> Tensor:
    scale = (x.pow(2).mean(-1, keepdim=True) + FLOOR).rsqrt()
    return x * scale * (1 + weight if one_plus else weight)


@pytest.mark.parametrize("one_plus", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (7, 33), (64, 192)])
def test_a_norm(rows: int, width: int, one_plus: bool) -> None:
    torch.manual_seed(rows)
    x, weight, gradient = torch.randn(rows, width) * 3, torch.randn(width), torch.randn(rows, width)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out = rms_norm_ref(mine, weight, FLOOR, one_plus)
    assert torch.equal(out, rms_norm_ref(x, weight, FLOOR, one_plus))
    out.backward(gradient)
    plain_rms_norm(theirs, weight.double(), one_plus).backward(gradient.double())
    assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-5)


def test_a_norm_in_16_bit() -> None:
    torch.manual_seed(0)
    x, weight, gradient = (t.bfloat16() for t in (torch.randn(32, 64), torch.randn(64), torch.randn(32, 64)))
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out = rms_norm_ref(mine, weight, FLOOR)
    assert torch.equal(out, rms_norm_ref(x, weight, FLOOR))
    out.backward(gradient)
    plain_rms_norm(theirs, weight.double(), False).backward(gradient.double())
    assert mine.grad.dtype == torch.bfloat16
    assert (mine.grad.double() - theirs.grad).abs().max() < 0.01 * theirs.grad.abs().max()


def test_a_norm_whose_weight_is_trained_has_that_gradient_too() -> None:
    x, weight = torch.randn(5, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    rms_norm_ref(x, weight, FLOOR).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_a_gate(activation: Activation, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    both, gradient = torch.randn(9, 34).to(dtype), torch.randn(9, 17).to(dtype)
    mine, theirs = both.clone().requires_grad_(), both.clone().requires_grad_()
    out = gated_ref(mine, activation)
    assert torch.equal(out, gated_ref(both, activation))
    out.backward(gradient)
    gate, up = theirs.chunk(2, -1)
    (ACTIVATIONS[activation](gate) * up).backward(gradient)
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-6 if dtype == torch.float32 else 0.02)
