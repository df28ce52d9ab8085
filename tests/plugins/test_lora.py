"""Adapters side by side in one batch, against merged weights, over every format of the base weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights, Factors, check_adapter, slot_bytes
from opsin_plugins.blocks.decoder import HEAD
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.slot_lora import Run, SlotLora
from opsin_plugins.blocks.weight_formats import FORMATS
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.conformance.adapters import random_adapter
from opsin_plugins.conformance.batches import Adapters, paged, whole
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.open_model import open_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import LinearShape, SpecError
from support import oracle, published, tiny

SHAPE = LinearShape(32, (5, 3, 4))
NAME = "layer"


def made(form: str = "dense", slots: int = 3, rank: int = 4, dtype: torch.dtype = torch.float32):
    """A linear with random weights, and slots for it, all filled."""
    torch.manual_seed(0)
    linear = Linear(SHAPE.inputs, SHAPE.segments, bias=True)
    linear.allocate(NAME, FORMATS[form])
    linear.fill([torch.randn(n, SHAPE.inputs) for n in SHAPE.segments])
    torch.nn.init.normal_(linear.bias)
    held = AdapterSlots({NAME: SHAPE}, slots, rank, dtype=dtype)
    adapters = [random_adapter({NAME: SHAPE}, 1 + i % rank, i) for i in range(slots)]
    for number, adapter in enumerate(adapters, 1):
        held.load(
            number,
            AdapterWeights({n: [f and Factors(f.a.to(dtype), f.b.to(dtype)) for f in g] for n, g in adapter.items()}),
        )
    return linear.to(dtype) if form == "dense" else linear, held, adapters


def merged(linear: Linear, adapter: dict[str, list[Factors | None]]) -> torch.Tensor:
    weight = linear.stored.dequantized().clone()
    for rows, factors in zip(weight.split(SHAPE.segments), adapter[NAME], strict=True):
        if factors is not None:
            rows += factors.b.T @ factors.a
    return weight


RUNS = {
    "one": [(1, 7)],
    "base alone": [(0, 5)],
    "sequences of a prefill": [(0, 20), (2, 33), (1, 1), (3, 40), (3, 2), (0, 1)],
    "decode": [(slot, 1) for slot in (3, 0, 1, 1, 2, 0, 3)],
    "one adapter here and there": [(0, 1), (2, 1), (0, 2), (2, 2)],
    "no row of one": [(1, 0), (2, 3), (0, 2)],
}


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_each_row_gets_its_own_adapter(form: str, runs: list[tuple[int, int]]) -> None:
    linear, slots, adapters = made(form)
    rows = [slot for slot, count in runs for _ in range(count)]
    x = torch.randn(len(rows), SHAPE.inputs)
    lora = SlotLora(slots, tuple(Run(*run) for run in runs))
    on_the_device = SlotLora(slots, None, torch.tensor(rows))
    with torch.no_grad():
        got, captured = linear(x, lora), linear(x, on_the_device)
    for row, slot in enumerate(rows):
        weight = merged(linear, adapters[slot - 1]) if slot else linear.stored.dequantized()
        expected = weight @ x[row] + linear.bias
        assert torch.allclose(got[row], expected, atol=1e-4)
        assert torch.allclose(captured[row], expected, atol=1e-4)


def test_what_overflows_for_one_adapter_is_no_number_in_no_other_row() -> None:
    """In 16 bit, where its product with a base row is infinite: 0 times that would not be a number."""
    linear, slots, _ = made(dtype=torch.float16, slots=1)
    big = Factors(torch.full((1, 32), 6e4, dtype=torch.float16), torch.ones(1, 5, dtype=torch.float16))
    slots.load(1, AdapterWeights({NAME: [big, None, None]}))
    x = torch.ones(3, 32, dtype=torch.float16)
    for lora in (SlotLora(slots, None, torch.tensor([1, 0, 1])), SlotLora(slots, (Run(1, 1), Run(0, 1), Run(1, 1)))):
        out = linear(x, lora)
        assert torch.equal(out[1], linear(x)[1])
        assert out[0, :5].isinf().all()


def test_adapters_side_by_side_are_laid_once_for_a_set_and_what_is_left_of_it() -> None:
    _, slots, _ = made(slots=7)
    held = slots[NAME]
    first = held.beside({1, 2, 3, 5})
    assert held.beside({5, 1}) is first
    alone = held.beside({5})
    assert alone is not first, "not more than twice what is needed"
    assert alone.slots == {5}
    assert len(alone.a) == sum(len(f.a) for f in held.factors(5) if f is not None)
    assert held.beside({5, 6}) is not alone


@torch.no_grad()
def test_what_lies_side_by_side_is_laid_anew_when_a_slot_changes() -> None:
    linear, slots, adapters = made()
    x, lora = torch.randn(3, 32), (Run(1, 1), Run(2, 1), Run(1, 1))
    linear(x, SlotLora(slots, lora))
    changed = random_adapter({NAME: SHAPE}, 3, 9)
    slots.load(2, AdapterWeights(changed))
    out = linear(x, SlotLora(slots, lora))
    for row, adapter in enumerate((adapters[0], changed, adapters[0])):
        assert torch.allclose(out[row], merged(linear, adapter) @ x[row] + linear.bias, atol=1e-4)
    slots.load(2, AdapterWeights({}))
    assert torch.equal(linear(x, SlotLora(slots, lora))[1], linear(x)[1])


def test_a_gradient_passes_through_rows_of_several_adapters() -> None:
    linear, slots, adapters = made()
    x = torch.randn(4, 32, requires_grad=True)
    rows = (1, 2, 0, 3)
    linear(x, SlotLora(slots, tuple(Run(slot, 1) for slot in rows))).sum().backward()
    for row, slot in enumerate(rows):
        weight = merged(linear, adapters[slot - 1]) if slot else linear.stored.dequantized()
        assert torch.allclose(x.grad[row], weight.sum(0), atol=1e-4)


def test_an_adapter_of_some_segments_leaves_the_others_alone() -> None:
    linear, slots, _ = made()
    slots.load(2, AdapterWeights({NAME: [None, random_adapter({NAME: SHAPE}, 2, 9)[NAME][1], None]}))
    x = torch.randn(3, 32)
    changed = (linear(x, SlotLora(slots, (Run(2, 3),))) - linear(x)).abs().amax(0) > 0
    assert changed.tolist() == [False] * 5 + [True] * 3 + [False] * 4


def test_a_slot_that_is_loaded_anew_holds_nothing_of_what_was_there() -> None:
    linear, slots, _ = made()
    x = torch.randn(3, 32)
    slots.load(2, AdapterWeights({}))
    for lora in (SlotLora(slots, (Run(2, 3),)), SlotLora(slots, None, torch.full((3,), 2))):
        assert torch.equal(linear(x, lora), linear(x))


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"other": [None]}, "'other', which is no linear"),
        ({NAME: [None]}, "factors of 1 segments; it has 3"),
        ({NAME: [Factors(torch.zeros(5, 32), torch.zeros(5, 5)), None, None]}, "rank 5; the slots have rank 4"),
        ({NAME: [Factors(torch.zeros(2, 31), torch.zeros(2, 5)), None, None]}, r"factors \[2, 31\] and \[2, 5\]"),
        ({NAME: [Factors(torch.zeros(2, 32), torch.zeros(3, 5)), None, None]}, "do not fit 32 inputs and 5 outputs"),
        ({NAME: [Factors(torch.zeros(2, 32), torch.full((2, 5), torch.nan)), None, None]}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(adapter: dict, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        check_adapter(AdapterWeights(adapter), {NAME: SHAPE}, 4, {})


def test_a_linear_that_the_spec_does_not_list_is_named() -> None:
    linear, slots, _ = made()
    linear.name = "other"
    with pytest.raises(SpecError, match="other is none of the linears"):
        linear(torch.zeros(1, 32), SlotLora(slots, (Run(1, 1),)))


def test_a_quantized_matmul_keeps_no_float_weight_for_the_backward_pass() -> None:
    """autograd over the definition would keep 4 bytes for each that is stored, in every layer."""
    linear, _, _ = made("int8")
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(4, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = linear(x)
    out.sum().backward()
    assert sum(kept) == 0
    assert torch.allclose(x.grad, linear.stored.dequantized().sum(0).expand(4, -1), atol=1e-4)


def test_a_slot_of_rank_64_of_a_7b_model_takes_what_its_factors_take() -> None:
    """Without zeros for the segments that a fused b would have: 0.39 GiB, not 0.58."""
    opened = open_files(published.model_files("Qwen2-VL-7B-Instruct"), Registry())
    linears = linears_of(opened.spec, opened.registry)
    layers = {name: shape for name, shape in linears.items() if ".layers." in name}
    assert round(slot_bytes(layers, 64, 2) / 2**30, 2) == 0.39


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "llava"])
@torch.no_grad()
def test_a_whole_model_with_adapters_over_quantized_weights(family: str, form: str, tmp_path: Path) -> None:
    """Equal to dequantized weights into which the adapter is merged."""
    theirs = tiny.FAMILIES[family].make()
    directory = tiny.save(theirs, tmp_path)
    options = tiny.FAMILIES[family].options
    ours = oracle.load(directory, WeightPolicy(form), options=options)
    linears = linears_of(ours.spec, Registry())
    adapter = random_adapter(
        {n: shape for n, shape in linears.items() if n != HEAD or not ours.spec.decoder.tied}, 3, 0
    )
    slots = AdapterSlots(linears, 1, 4)
    slots.load(1, AdapterWeights(adapter))
    prompts = [oracle.prompt(ours, [5, 6, 7, 8], []), oracle.prompt(ours, [9, 10, 11], [])]
    if ours.spec.image_token is not None:
        prompts.append(oracle.prompt(ours, [5, ours.spec.image_token, 7, 8], [oracle.picture(0, 40, 50)]))
    chosen = Adapters(slots, [1] * len(prompts))
    got, stepped = whole(ours.model, prompts, chosen), paged(ours.model, prompts, 3, chosen)

    plain = oracle.load(directory, options=options)
    quantized = {path: m for path, m in ours.model.named_modules() if isinstance(m, Linear)}
    assert any(m.stored.name == form for m in quantized.values())
    for path, module in plain.model.named_modules():
        if isinstance(module, Linear):
            weight = quantized[path].stored.dequantized().clone()
            for rows, factors in zip(weight.split(module.segments), adapter[path], strict=True):
                rows += factors.b.T @ factors.a
            module.stored.weight.data.copy_(weight)
    for a, b, c in zip(got, stepped, whole(plain.model, prompts), strict=True):
        assert (a - c).abs().max() < 1e-4
        assert (b - c).abs().max() < 1e-4
