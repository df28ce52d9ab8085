"""One linear in training: forward and backward as autograd has them over the weight that is meant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.trainee_lora import Dropout, TrainedLinear, TrainedSegment, TraineeLora
from opsin_plugins.blocks.weight_formats import FORMATS

NAME, INPUTS, SEGMENTS = "layer", 32, (5, 3, 4)
COLUMNS = [slice(0, 5), slice(5, 8), slice(8, 12)]
SCALE = 0.7


def made(form: str, lines: list[tuple[int, slice]]) -> tuple[Linear, TrainedLinear]:
    """lines: of each segment that is trained, its own of `a`."""
    torch.manual_seed(0)
    linear = Linear(INPUTS, SEGMENTS, bias=True)
    linear.allocate(NAME, FORMATS[form])
    linear.fill([torch.randn(n, INPUTS) for n in SEGMENTS])
    torch.nn.init.normal_(linear.bias)
    a = torch.randn(max(own.stop for _, own in lines), INPUTS, requires_grad=True)
    segments = [
        TrainedSegment(COLUMNS[i], own, torch.randn(own.stop - own.start, SEGMENTS[i], requires_grad=True), SCALE)
        for i, own in lines
    ]
    return linear, TrainedLinear(a, segments)


def plainly(linear: Linear, trained: TrainedLinear, x: Tensor, seen: Tensor) -> Tensor:
    out = x @ linear.stored.dequantized().T + linear.bias
    for segment in trained.segments:
        added = seen @ trained.a[segment.lines].T @ segment.b * segment.scale
        out = torch.cat(
            [out[:, : segment.columns.start], out[:, segment.columns] + added, out[:, segment.columns.stop :]], 1
        )
    return out


def gradients(out: Tensor, target: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    ((out - target) ** 2).sum().backward()
    return [leaf.grad.clone() for leaf in leaves]


@pytest.mark.parametrize("dropout", [None, Dropout(0.4, 7)], ids=["all", "dropout"])
@pytest.mark.parametrize(
    "lines",
    [
        [(0, slice(0, 4)), (1, slice(4, 8)), (2, slice(8, 12))],
        [(0, slice(0, 4)), (1, slice(0, 4)), (2, slice(0, 4))],
        [(1, slice(0, 3))],
    ],
    ids=["apart", "published as one", "some"],
)
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_gradients_are_those_of_the_weight_that_is_meant(
    form: str, lines: list[tuple[int, slice]], dropout: Dropout | None
) -> None:
    linear, trained = made(form, lines)
    x, target = torch.randn(9, INPUTS, requires_grad=True), torch.randn(9, sum(SEGMENTS))
    leaves = [x, *trained.leaves]
    out = linear(x, TraineeLora({NAME: trained}, None, dropout))
    seen = x if dropout is None else x * dropout.factor(NAME, x.detach())
    expected = plainly(linear, trained, x, seen)
    assert torch.allclose(out, expected, atol=1e-4)
    for got, wanted in zip(gradients(out, target, leaves), gradients(expected, target, leaves), strict=True):
        assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-4)


def test_an_input_without_gradient_asks_the_weight_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, trained = made("int8", [(0, slice(0, 4))])
    monkeypatch.setattr(linear.stored, "input_gradient", lambda gradient: pytest.fail("it was asked"))
    linear(torch.randn(3, INPUTS), TraineeLora({NAME: trained})).sum().backward()
    assert trained.a.grad.abs().max() > 0


def test_in_16_bit_the_factors_stay_what_they_are() -> None:
    """Computed in the model's type, with float32 gradients of float32 factors."""
    linear, trained = made("dense", [(0, slice(0, 4)), (2, slice(4, 8))])
    half = linear.to(torch.bfloat16)
    x = torch.randn(64, INPUTS)
    out = half(x.bfloat16().requires_grad_(), TraineeLora({NAME: trained}))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    got = [leaf.grad.clone() for leaf in trained.leaves]
    assert {leaf.dtype for leaf in got} == {torch.float32}
    expected = gradients_of_sum(linear, trained, x)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() < 0.03 * other.abs().max()


def gradients_of_sum(linear: Linear, trained: TrainedLinear, x: Tensor) -> list[Tensor]:
    for leaf in trained.leaves:
        leaf.grad = None
    plainly(linear.float(), trained, x, x).sum().backward()
    return [leaf.grad for leaf in trained.leaves]


def test_what_is_kept_for_the_backward_pass_is_the_input_and_what_was_shrunk() -> None:
    linear, trained = made("int8", [(0, slice(0, 4)), (1, slice(4, 8)), (2, slice(8, 12))])
    kept: dict[int, int] = {}
    weights = {t.untyped_storage().data_ptr() for t in trained.leaves}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(16, INPUTS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear(x, TraineeLora({NAME: trained}))
    assert sum(kept.values()) == x.nbytes + 16 * 12 * 4


def test_other_linears_are_the_base_models() -> None:
    linear, trained = made("dense", [(0, slice(0, 4))])
    linear.name = "other"
    x = torch.randn(3, INPUTS)
    assert torch.equal(linear(x, TraineeLora({NAME: trained})), linear(x))
