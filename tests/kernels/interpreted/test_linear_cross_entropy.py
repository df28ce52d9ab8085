"""The kernel of the head's loss against its definition in float32; what it may not touch stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsin_kernels import dispatch
from opsin_kernels import linear_cross_entropy as losses
from opsin_kernels.gpu import linear_cross_entropy as gpu_losses

# Of a gradient, relative to its length and to what it is the difference of; measured: 1e-7, 1.6e-4, 1.4e-3.
TYPES = {torch.float32: 4e-7, torch.float16: 4e-4, torch.bfloat16: 3e-3}
LOGIT = 8e-7  # the error of a logit, relative to the lengths that are multiplied; measured: 4e-7


def made(rows: int, width: int, vocabulary: int, dtype: torch.dtype, spread: float = 2.0) -> tuple[Tensor, ...]:
    x, weight = spread * torch.randn(rows, width), torch.randn(vocabulary, width) * width**-0.5
    return x.to(dtype), weight.to(dtype), torch.randint(vocabulary, (rows,))


def check(x: Tensor, weight: Tensor, labels: Tensor, step: int) -> None:
    loss, gradient, hit = gpu_losses.linear_cross_entropy(x, weight, labels, True, step)
    wanted, slope, hits = losses.linear_cross_entropy_ref(x.float(), weight.float(), labels)
    assert (loss.dtype, gradient.dtype, hit.dtype) == (torch.float32, x.dtype, torch.bool)
    length = weight.float().norm(dim=-1).max()
    error = LOGIT * (1 + x.float().norm(dim=-1) * length)
    assert ((loss - wanted).abs() <= error).all()
    size = slope.norm(dim=-1) + 2 * (1 - torch.exp(-wanted)) * length  # gradients of a row's logits, taken absolutely
    assert ((gradient.float() - slope).norm(dim=-1) <= TYPES[x.dtype] * size + error * length).all()
    assert torch.equal(hit, hits)
    alone = gpu_losses.linear_cross_entropy(x, weight, labels, False, step)
    assert alone[1] is None
    assert torch.equal(alone[0], loss)
    assert torch.equal(alone[2], hit)


@given(
    st.integers(1, 5), st.integers(1, 40), st.integers(1, 150), st.sampled_from(list(TYPES)),
    st.sampled_from([16, 64, 256]), st.integers(0, 10**6), st.sampled_from([0.3, 2.0, 20.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_the_definition(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype, step: int, seed: int, spread: float
) -> None:
    torch.manual_seed(seed)
    check(*made(rows, width, vocabulary, dtype, spread), step)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocabulary", [4096, 4097, 9001])
def test_at_the_step_that_is_launched(vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocabulary)
    check(*made(3, 24, vocabulary, dtype), gpu_losses.STEP)


def test_labels_at_both_ends_and_at_the_edges_of_a_step() -> None:
    torch.manual_seed(0)
    x, weight, _ = made(6, 8, 37, torch.float32)
    check(x, weight, torch.tensor([0, 36, 15, 16, 31, 32]), 16)


@pytest.mark.parametrize("where", [0, 20, 39])
def test_a_larger_logit_makes_the_former_fade(where: int) -> None:
    """Rising, falling, and one that towers over all: 1e4 before, behind and within."""
    weight = torch.linspace(-1, 1, 40)[:, None]
    weight[where] = 1.5
    for largest in (1.0, 80.0, 1e4):
        x = torch.tensor([[largest], [-largest]])
        check(x, weight, torch.tensor([where, 0]), 16)
        loss, gradient, _ = gpu_losses.linear_cross_entropy(x, weight, torch.tensor([where, 0]), True, 16)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_of_equally_likely_tokens_the_first_counts() -> None:
    """In the same place of two steps, in other places of one, and all of them."""
    for equal in ([5, 21], [7, 21], [3, 9], [21, 22, 37], list(range(40))):
        weight = torch.zeros(40, 2)
        weight[equal] = 1.0
        labels = torch.tensor(equal)
        _, _, hit = gpu_losses.linear_cross_entropy(torch.ones(len(equal), 2), weight, labels, False, 16)
        assert hit.tolist() == [True] + [False] * (len(equal) - 1)


@pytest.mark.parametrize("dtype", TYPES)
def test_it_reads_and_writes_nothing_beside_its_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    rows, size, wide = 3, 37, 48
    logits = torch.full((rows, wide), torch.nan)
    logits[:, :size] = 2 * torch.randn(rows, size)
    labels, loss = torch.randint(size, (rows,)), torch.empty(rows)
    hit, out = torch.empty(rows, dtype=torch.bool), torch.full((rows + 1, wide), 7.0, dtype=dtype)
    wanted = logits[:, :size].softmax(-1) - torch.nn.functional.one_hot(labels, size)
    before = logits.clone()
    gpu_losses.cross_entropy_rows[(rows,)](
        logits, labels, loss, hit, out, wide, wide, size, STEP=16, SCALE=1.0, GRADIENT=True
    )
    assert torch.allclose(out[:rows, :size].float(), wanted, atol=1e-7, rtol=4 * TYPES[dtype])
    assert (out[:, size:] == 7).all()
    assert (out[rows] == 7).all()
    assert torch.equal(logits.nan_to_num(7), before.nan_to_num(7))


def test_probabilities_below_float16s_normal_numbers_count() -> None:
    """2,000 tokens of 2^-26, half of the least number there is, and one that has the rest. What they pull together,
    3e-5, is a number."""
    weight = torch.zeros(2001, 2)
    weight[0, 0], weight[1:, 1] = 18.0, 1.0
    inputs = torch.tensor([[1.0, 0.0]]).half(), weight.half(), torch.tensor([0])
    _, gradient, _ = gpu_losses.linear_cross_entropy(*inputs, True, 1024)
    assert gradient[0, 1].item() == pytest.approx(2000 * math.exp(-18.0), rel=5e-3)


@pytest.mark.parametrize("label", [-100, -1, 37, 10**9])
def test_a_label_that_is_not_a_token_gives_no_number(label: int) -> None:
    """A CPU's labels are refused beforehand; a device is not waited for."""
    torch.manual_seed(0)
    x, weight, _ = made(3, 4, 37, torch.float32)
    loss, gradient, hit = gpu_losses.linear_cross_entropy(x, weight, torch.tensor([1, label, 2]), True, 16)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(-1).tolist() == [False, True, False]
    assert not gradient[[0, 2]].isnan().any()
    assert not hit[1]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_row(broken: float) -> None:
    torch.manual_seed(0)
    x, weight, _ = made(3, 4, 37, torch.float32)
    x[1, 0], weight = broken, weight.abs()
    loss, gradient, hit = gpu_losses.linear_cross_entropy(x, weight, torch.tensor([1, 0, 2]), True, 16)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(-1).tolist() == [False, True, False]
    assert not hit[1]


def test_no_rows_are_no_launch() -> None:
    loss, gradient, hit = gpu_losses.linear_cross_entropy(*made(0, 5, 7, torch.bfloat16), True)
    assert (loss.shape, gradient.shape, hit.shape) == ((0,), (0, 5), (0,))
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", TYPES)
def test_autograd_comes_to_the_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    torch.manual_seed(2)
    x, weight, labels = made(4, 12, 50, dtype)
    loss, gradient, hit = gpu_losses.linear_cross_entropy(x, weight, labels, True)
    ours, hits = losses.linear_cross_entropy(x.requires_grad_(), weight, labels)
    incoming = torch.tensor([1.0, -2.0, 0.0, 0.25])
    (slope,) = torch.autograd.grad(ours, x, incoming)
    assert torch.equal(ours, loss)
    assert torch.equal(hits, hit)
    assert torch.equal(slope, (gradient * incoming[:, None]).to(dtype))
