"""Backward passes of the kernels against autograd on the definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from opsin_kernels import activations, rotary
from opsin_kernels import rms_norm as norms
from opsin_kernels.gpu import activations as gpu_activations
from opsin_kernels.gpu import rms_norm as gpu_norms
from opsin_kernels.gpu import rotary as gpu_rotary

TYPES = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def gradients(run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """Of a random sum of all that comes out, to the wanted inputs."""
    leaves = [x.detach().clone().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
    torch.manual_seed(0)  # (a generator would be the CPU's, whatever device tensors are made on)
    total = sum((y.float() * torch.randn(y.shape)).sum() for y in run(*leaves))
    return list(torch.autograd.grad(total, [x for x, w in zip(leaves, wanted, strict=True) if w]))


def same(ours: Callable[..., Sequence[Tensor]], theirs: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor],
         wanted: Sequence[bool]) -> None:  # fmt: skip
    for a, b in zip(gradients(ours, inputs, wanted), gradients(theirs, inputs, wanted), strict=True):
        assert a.dtype == b.dtype
        error = (a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-9)
        assert error < TYPES[a.dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("rows", "width", "one_plus"), [(1, 192, False), (5, 129, True), (11, 2, False)])
def test_rms_norm(
    rows: int, width: int, one_plus: bool, wanted: tuple[bool, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_norms, "PROGRAMS", 8)  # so that few rows are more than there are programs
    torch.manual_seed(width)
    inputs, floor = (torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)), torch.tensor(1e-5)
    same(
        lambda x, w: [gpu_norms.rms_norm(x, w, floor, one_plus)],
        lambda x, w: [norms.rms_norm_ref(x, w, floor, one_plus)], inputs, wanted,
    )  # fmt: skip


@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_the_norm_of_a_sum(wanted: tuple[bool, ...], used: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    inputs, floor = (torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)), torch.tensor(1e-5)

    def theirs(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return x + delta, norms.rms_norm_ref(x + delta, weight, floor)

    if used == (0,):
        wanted = (*wanted[:2], False)  # the sum knows no weight
    same(
        lambda *x: [gpu_norms.add_rms_norm(*x, floor)[i] for i in used],
        lambda *x: [theirs(*x)[i] for i in used], inputs, wanted,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", list(activations.ACTIVATIONS))
def test_activations(activation: activations.Activation, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = (4 * torch.randn(3, 2, 350)).to(dtype)
    same(
        lambda x: [gpu_activations.activated(x, activation)],
        lambda x: [activations.ACTIVATIONS[activation](x)], [x], [True],
    )  # fmt: skip
    same(
        lambda x: [gpu_activations.gated(x, activation)],
        lambda x: [activations.gated_ref(x, activation)], [x], [True],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [2, 24, 80])
def test_turned_in_place_within_a_fused_projection(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    tables = rotary.angles_to_tables(10 * torch.rand(5, size // 2), dtype)

    def turned(turn: Callable[[Tensor, Tensor, Tensor], None]) -> Callable[[Tensor], list[Tensor]]:
        def run(x: Tensor) -> list[Tensor]:
            qkv = x * 1  # what a projection gives; leaves cannot change in place
            turn(qkv[:, :6], *tables)
            return list(qkv.split((4, 2, 3), 1))

        return run

    same(turned(gpu_rotary.rotate_), turned(rotary.rotate_ref_), [torch.randn(5, 9, size).to(dtype)], [True])
