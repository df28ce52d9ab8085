"""Rounding that makes up for its errors: on data never worse than rounding to nearest, and what its definition says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsin_plugins.spec import Reorder
from opsin_server.quantize import compensate
from opsin_server.quantize.calibrate import _seen
from opsin_server.quantize.compensate import DAMPING, Moments, compensated, compensation, output_errors
from opsin_server.quantize.schemes import SCHEMES, SchemeName, Seen


def drawn(seed: int, outputs: int, inputs: int, rows: int) -> tuple[Tensor, Tensor]:
    """A weight, and inputs [rows, inputs] that go together, some more than others."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(1, inputs // 8), generator=generator)
    spread = torch.randn(few.shape[1], inputs, generator=generator) + 0.3 * torch.randn(inputs, generator=generator)
    data = few @ spread + 0.1 * torch.randn(rows, inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), data


def seen(data: Tensor) -> Seen:
    moments = Moments(data.shape[1])
    for part in data.split(7):
        moments.add(part)
    return _seen(moments, None)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["int4", "int8", "fp8"]),
    st.sampled_from([1, 5, 33]),
    st.sampled_from([32, 160]),
    st.sampled_from([1, 20, 300]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_on_the_data_no_row_is_worse_than_one_that_is_rounded_to_nearest(
    seed: int, scheme: SchemeName, outputs: int, inputs: int, rows: int, dtype: torch.dtype
) -> None:
    weight, data = drawn(seed, outputs, inputs, rows)
    weight = weight.to(dtype)
    group = 32 if scheme == "int4" else 0
    _, plain = SCHEMES[scheme].write(weight, group)
    _, calibrated = SCHEMES[scheme].write(weight, group, seen(data))
    mine, theirs = (((meant - weight.float()) @ data.T).square().sum(1) for meant in (calibrated, plain))
    assert bool((mine <= theirs * (1 + 1e-3) + 1e-6 * data.square().sum()).all())


@pytest.mark.parametrize(("scheme", "least"), [("int4", 0.6), ("int8", 0.6), ("fp8", 0.6)])
def test_where_inputs_go_together_it_is_much_better(scheme: SchemeName, least: float) -> None:
    weight, data = drawn(3, 64, 256, 2000)
    group = 64 if scheme == "int4" else 0
    _, plain = SCHEMES[scheme].write(weight, group)
    _, calibrated = SCHEMES[scheme].write(weight, group, seen(data))
    mine, theirs = (((meant - weight) @ data.T).norm() for meant in (calibrated, plain))
    assert mine < least * theirs


def test_moments_are_those_of_all_rows() -> None:
    _, data = drawn(0, 1, 40, 50)
    found = seen(data)
    assert torch.allclose(found.moments, data.T @ data / len(data), rtol=1e-4, atol=1e-4)
    assert bool((found.moments.diagonal()[found.order].diff() <= 0).all())


def test_the_factor_is_that_of_the_inverse() -> None:
    _, data = drawn(1, 1, 60, 30)  # fewer rows than inputs: the moments alone have no inverse
    moments = data.T @ data / len(data)
    factor = compensation(moments)
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(60)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(damped.double()).float(), rtol=1e-2, atol=1e-3)
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("moments", [torch.zeros(8, 8), torch.full((8, 8), float("nan")), -torch.eye(8)])
def test_moments_that_say_nothing_compensate_nothing(moments: Tensor) -> None:
    factor = compensation(moments)
    weight = torch.randn(3, 8)
    assert torch.equal(compensated(weight, factor, lambda column, j: column.round()), weight.round())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the method is written down: each column's error goes to all that are behind it, at once."""
    weight, data = drawn(2, 9, 70, 90)
    factor = compensation(data.T @ data / len(data))
    rest, wanted = weight.double(), torch.empty(9, 70)
    for j in range(70):
        wanted[:, j] = rest[:, j].round()
        error = (rest[:, j] - wanted[:, j]) / factor[j, j]
        rest[:, j:] -= error[:, None] * factor[j, j:]
    monkeypatch.setattr(compensate, "BLOCK", 16)
    assert torch.equal(compensated(weight, factor, lambda column, j: column.round()), wanted)


def test_output_errors_are_those_of_the_outputs() -> None:
    error, data = drawn(4, 6, 24, 50)
    assert torch.allclose(output_errors(error, data.T @ data), (error @ data.T).square().sum(1), rtol=1e-3)


def test_columns_in_another_order_have_their_own_moments() -> None:
    """A published weight whose columns the model has in another order: column i of it meets what the model's meets."""
    _, data = drawn(5, 1, 12, 40)
    order = Reorder((4, 3), (1, 0), axis=1)
    published = torch.arange(12.0)[None]
    model = published.view(1, 4, 3).permute(0, 2, 1).reshape(1, 12)  # what `reordered` makes of it
    moments = Moments(12)
    moments.add(data)
    found = _seen(moments, order)
    back = [model[0].tolist().index(float(i)) for i in range(12)]  # where each published column lies in the model
    assert torch.allclose(found.moments, (data.T @ data / len(data))[back][:, back], rtol=1e-4, atol=1e-4)
