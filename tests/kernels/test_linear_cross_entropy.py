"""The definition of the head's loss: what torch gives in float64, with the memory that it says."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opsin_kernels import linear_cross_entropy as losses

# Of the result's own rounding, relative to what is rounded.
ROUNDING = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
DTYPES = st.sampled_from(list(ROUNDING))


def made(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype, seed: int = 0, spread: float = 2.0
) -> list[Tensor]:
    """x, weight and labels; logits are spread by that."""
    torch.manual_seed(seed)
    x, weight = spread * torch.randn(rows, width), torch.randn(vocabulary, width) * width**-0.5
    return [x.to(dtype), weight.to(dtype), torch.randint(vocabulary, (rows,))]


def exact(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and hits of the same inputs by torch, in float64."""
    x = x.detach().double().requires_grad_()
    logits = F.linear(x, weight.double())
    loss = F.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient, logits.argmax(-1) == labels


def check(x: Tensor, weight: Tensor, labels: Tensor) -> None:
    loss, gradient, hit = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    assert (loss.dtype, gradient.dtype, hit.dtype) == (torch.float32, x.dtype, torch.bool)
    assert gradient.shape == x.shape
    wanted, slope, hits = exact(x, weight, labels)
    size = 1 + float(x.double().norm(dim=-1).max() * weight.double().norm(dim=-1).max())  # what no logit is above
    assert torch.allclose(loss.double(), wanted, atol=1e-6 * size, rtol=0)
    # An error of a logit is one of its probability, of the same size.
    atol = 1e-6 * size * float(weight.abs().max())
    assert torch.allclose(gradient.double(), slope, atol=atol, rtol=ROUNDING[x.dtype])
    assert torch.equal(hit, hits)


@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 150), DTYPES, st.integers(0, 10**6),
    st.sampled_from([1, 7, 64, losses.BLOCK]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_loss_and_gradient_are_torchs(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype, seed: int, block: int
) -> None:
    with mock.patch.object(losses, "BLOCK", block):
        check(*made(rows, width, vocabulary, dtype, seed))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5003), (33, 2047), (7, 2048), (3, 2049), (5, 4096)])
def test_whole_blocks_and_parts_of_one(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    check(*made(rows, 61, vocabulary, dtype))


@pytest.mark.parametrize("block", [4, losses.BLOCK])
def test_labels_at_both_ends_and_at_the_edges_of_a_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    x, weight, _ = made(6, 8, 11, torch.float32)
    check(x, weight, torch.tensor([0, 10, 3, 4, 7, 8]))


@pytest.mark.parametrize("largest", [1e4, 1e30])
@pytest.mark.parametrize("block", [2, losses.BLOCK])
def test_huge_logits_do_not_overflow(largest: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    weight = torch.tensor([[-1.0], [0.25], [1.0], [0.5], [-0.5]])
    x, labels = torch.tensor([[largest], [largest], [-largest], [0.0]]), torch.tensor([2, 1, 2, 4])
    loss, gradient, hit = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    assert loss.tolist() == pytest.approx([0.0, 0.75 * largest, 2 * largest, math.log(5)], rel=1e-6)
    assert hit.tolist() == [True, False, False, False]
    slopes = [0.0, 0.75, -2.0, 0.05 + 0.5]  # (all five are equally likely in the last row)
    assert gradient[:, 0].tolist() == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize("block", [2, 3, losses.BLOCK])
def test_of_equally_likely_tokens_the_first_counts(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    weight = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])[:, None].repeat(1, 3)
    _, hit = losses.linear_cross_entropy(torch.ones(5, 3), weight, torch.arange(5))
    assert hit.tolist() == [False, True, False, False, False]
    _, hit = losses.linear_cross_entropy(torch.zeros(2, 3), weight, torch.tensor([0, 1]))
    assert hit.tolist() == [True, False]


def test_no_rows_are_no_error() -> None:
    loss, gradient, hit = losses.linear_cross_entropy_with_gradient(*made(0, 5, 7, torch.bfloat16))
    assert (loss.shape, gradient.shape, hit.shape) == ((0,), (0, 5), (0,))


def test_a_tied_embedding_gives_its_first_rows() -> None:
    x, embedding, _ = made(4, 6, 12, torch.float32)
    labels = torch.tensor([0, 9, 4, 2])
    for ours, theirs in zip(
        losses.linear_cross_entropy_with_gradient(x, embedding[:10], labels),
        losses.linear_cross_entropy_with_gradient(x, embedding[:10].clone(), labels),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_autograd_multiplies_the_kept_gradient(dtype: torch.dtype) -> None:
    x, weight, labels = made(5, 12, 30, dtype)
    x.requires_grad_()
    loss, hit = losses.linear_cross_entropy(x, weight, labels)
    incoming = torch.tensor([1.0, -2.0, 0.0, 0.3, 1e-3])
    (ours,) = torch.autograd.grad(loss, x, incoming)
    wanted, slope, hits = exact(x, weight, labels)
    assert ours.dtype == dtype
    assert torch.allclose(loss.detach().double(), wanted, atol=2e-5)
    assert torch.allclose(ours.double(), slope * incoming[:, None], atol=1e-6, rtol=2 * ROUNDING[dtype])
    assert not hit.requires_grad
    assert torch.equal(hit, hits)


def test_a_second_derivative_is_refused() -> None:
    x, weight, labels = made(2, 3, 4, torch.float32)
    x.requires_grad_()
    loss, _ = losses.linear_cross_entropy(x, weight, labels)
    (slope,) = torch.autograd.grad(loss.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


class Made(TorchDispatchMode):
    """The products that are computed, and the largest tensor that an operation brings, in values and in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest, self.bytes = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:  # no view
                self.largest, self.bytes = max(self.largest, x.numel()), max(self.bytes, x.nbytes)
        return out


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "width"), [(64, 48), (3, 48), (3, 5000)])
def test_no_tensor_is_of_rows_by_vocabulary(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, labels = made(rows, width, 3 * losses.BLOCK + 5, dtype)
    widened = (rows * width, losses.BLOCK * width) if dtype != torch.float32 else ()
    for wants in (False, True):
        with Made() as seen:
            losses.linear_cross_entropy_ref(x, weight, labels, wants)
        assert seen.largest == max(rows * losses.BLOCK, *widened, rows * width * wants)
        assert seen.bytes == 4 * seen.largest


def test_a_gradient_that_nobody_needs_is_not_computed() -> None:
    x, weight, labels = made(3, 8, 20, torch.float32)
    for needed, products in ((False, 1), (True, 2)):
        with Made() as seen:
            losses.linear_cross_entropy(x.requires_grad_(needed), weight, labels)
        assert seen.products == products
    with Made() as seen, torch.no_grad():
        losses.linear_cross_entropy(x, weight, labels)
    assert seen.products == 1


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("block", [3, losses.BLOCK])
def test_what_is_no_number_stays_in_its_row(broken: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    x, weight, labels = made(3, 4, 11, torch.float32)
    before = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    weight, x[1, 0], labels[1] = weight.abs(), broken, 0  # (all logits of the row are, and token 0 is the first)
    loss, gradient, hit = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(-1).tolist() == [False, True, False]
    assert not gradient[[0, 2]].isnan().any()
    assert not hit[1]
    assert before[0].isfinite().all()


@pytest.mark.parametrize("block", [3, losses.BLOCK])
def test_a_packed_head_is_floats_a_block_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    x, weight, labels = made(3, 4, 11, torch.float32)
    sizes = []

    def rows(ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return weight[ids]

    wanted = losses.linear_cross_entropy_with_gradient(x, weight, labels)
    found = losses.linear_cross_entropy_with_gradient(x, losses.PackedHead((11, 4), rows), labels)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert max(sizes) == min(block, 11)


def test_what_it_does_not_take_is_refused_by_name() -> None:
    x, weight, labels = made(3, 4, 7, torch.float32)

    def refused(match: str, *inputs: Tensor) -> None:
        for run in (losses.linear_cross_entropy, losses.linear_cross_entropy_with_gradient):
            with pytest.raises(ValueError, match=match):
                run(*inputs)

    refused(r"label 7 is none of the 7 tokens", x, weight, torch.tensor([0, 7, 1]))
    refused(r"label -100 is none of the 7 tokens", x, weight, torch.tensor([0, -100, 1]))
    refused(r"labels torch.int32 are not int64", x, weight, labels.int())
    packed = losses.PackedHead((7, 4), lambda ids: weight[ids])
    refused(r"bfloat16 on cpu: a packed head is for float32 on a CPU", x.bfloat16(), packed, labels)
    refused(r"float32 and weight torch.bfloat16", x, weight.bfloat16(), labels)
    refused(r"torch.int8: a head is dense", x, weight.to(torch.int8), labels)
    refused(r"float64: a head is dense", x.double(), weight.double(), labels)
    refused(r"x \[3, 4\], weight \[7, 3\] and labels \[3\] are not", x, weight[:, :3], labels)
    refused(r"labels \[2\] are not", x, weight, labels[:2])
    refused(r"labels \[3, 1\] are not", x, weight, labels[:, None])
    refused(r"x \[4\], weight", x[0], weight, labels)
    refused(r"frozen head gets none", x, weight.requires_grad_(), labels)
