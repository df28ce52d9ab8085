"""The kernels of adapters in slots against their definition; NaN stands wherever nothing should be read."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import Tensor

from opsin_kernels.dispatch import INTERPRETED
from opsin_kernels.gpu import lora as gpu_lora
from opsin_kernels.gpu.lora_shapes import shape_for, shapes_of
from opsin_kernels.lora import SlotFactors, add_lora_slots_ref, column_tiles
from opsin_kernels.slot_rows import SlotRows

TYPES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# rows, slots, the slots' rank, inputs, segments
SIZES = {
    "a row": (1, 1, 4, 64, (16,)),
    "rows of few, two segments": (7, 3, 8, 200, (40, 24)),
    "unequal segments": (16, 8, 16, 96, (136, 32, 5)),
    "large ranks, split inputs": (19, 3, 64, 1000, (130,)),
    "many tiles": (129, 8, 24, 72, (48, 17)),
    "larger tiles": (300, 3, 40, 576, (64, 32, 32)),
}


def factors_of(slots: int, rank: int, inputs: int, segments: tuple[int, ...], dtype: torch.dtype, seed: int = 0):
    """Random ones of ranks from 0 to `rank`: as the definition wants them, and with NaN where an adapter has none."""
    torch.manual_seed(seed)
    ends = list(accumulate(segments))
    columns = [slice(end - size, end) for end, size in zip(ends, segments, strict=True)]
    ranks = torch.randint(0, rank + 1, (slots, len(segments)), dtype=torch.int32)
    ranks[0, 0], ranks[-1, -1] = rank, (rank + 1) // 2
    made = []
    for rest in (0.0, torch.nan):
        torch.manual_seed(seed + 1)
        a = (torch.randn(slots, len(segments), rank, inputs) * inputs**-0.5).to(dtype)
        b = (torch.randn(slots, rank, sum(segments)) * rank**-0.5).to(dtype)
        for slot, line in enumerate(ranks.tolist()):
            for segment, own in enumerate(line):
                a[slot, segment, own:] = rest
                b[slot, own:, columns[segment]] = rest
        tiles = torch.tensor(column_tiles(columns), dtype=torch.int32)
        made.append(SlotFactors(a, b, ranks, columns, tiles))
    return made


def within(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Random, a slice of a wider tensor of NaN."""
    wide = torch.full((rows, width + 16), torch.nan, dtype=dtype)
    wide[:, 8 : 8 + width] = torch.randn(rows, width)
    return wide[:, 8 : 8 + width]


def rows_of(slots: Tensor, count: int) -> SlotRows:
    return SlotRows(slots, torch.arange(1, count + 2))


def mixed(rows: int, count: int) -> Tensor:
    """Slots of every kind: the base model's, an adapter in training's (-1), and all others, in any order."""
    return torch.randint(-1, count + 1, (rows,)) if rows > 1 else torch.ones(1, dtype=torch.int64)


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    assert ours.dtype == theirs.dtype == dtype
    return torch.allclose(ours.float(), theirs.float(), atol=TYPES[dtype], rtol=TYPES[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_each_row_gets_its_own_adapter(size: tuple, dtype: torch.dtype) -> None:
    rows, count, rank, inputs, segments = size
    given, holed = factors_of(count, rank, inputs, segments, dtype)
    slots = mixed(rows, count)
    x, out = within(rows, inputs, dtype), within(rows, sum(segments), dtype)
    # (A copy: in bfloat16 torch's product of a slice multiplies what lies behind it by 0, which a NaN survives.)
    expected = add_lora_slots_ref(out.clone(), x.clone(), given, rows_of(slots, count))
    before = out.clone()
    got = gpu_lora.add_lora_slots(out, x, holed, rows_of(slots, count))
    assert got is out
    assert close(got, expected, dtype)
    assert torch.equal(got[slots <= 0], before[slots <= 0]), "base rows keep their bits"
    assert not torch.equal(got, before)


@pytest.mark.parametrize("slots", [[0] * 20, [3] * 20, [2] * 19 + [0], [1] + [0] * 19])
def test_base_rows_alone_and_one_adapter_alone(slots: list[int]) -> None:
    given, holed = factors_of(3, 8, 64, (32, 16), torch.float32)
    rows = rows_of(torch.tensor(slots), 3)
    x, out = torch.randn(20, 64), torch.randn(20, 48)
    expected = add_lora_slots_ref(out.clone(), x, given, rows)
    got = gpu_lora.add_lora_slots(out.clone(), x, holed, rows)
    assert close(got, expected, torch.float32)
    assert torch.equal(got, out) == (not any(slots))


def test_what_overflows_for_one_adapter_is_no_number_in_no_other_row() -> None:
    given, _ = factors_of(3, 4, 64, (16, 16), torch.float16)
    given.ranks[:] = 4
    given.a[1], given.b[1] = 6e4, torch.inf
    x, out = torch.ones(9, 64, dtype=torch.float16), torch.zeros(9, 32, dtype=torch.float16)
    slots = torch.tensor([1, 2, 0, 3, 2, 1, 3, 0, 2])
    gpu_lora.add_lora_slots(out, x, given, rows_of(slots, 3))
    assert out[slots == 2].isinf().all()
    assert out[slots != 2].isfinite().all()
    x[slots == 1] = torch.nan
    out.zero_()
    gpu_lora.add_lora_slots(out, x, given, rows_of(slots, 3))
    assert out[slots == 1].isnan().all()
    assert out[(slots == 0) | (slots == 3)].isfinite().all()


def test_a_row_is_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, as long as rows count as few."""
    if INTERPRETED:  # numpy's BLAS may add up a row in another order where it stands at another place of a tile

        def product(a: np.ndarray, b: np.ndarray, dtype: type) -> np.ndarray:
            return np.einsum("...ij,...jk->...ik", a, b, dtype=dtype, optimize=False)

        monkeypatch.setattr(np, "matmul", product)
    _, holed = factors_of(4, 16, 600, (64, 32), torch.float32)
    x, out, slots = torch.randn(40, 600), torch.randn(40, 96), mixed(40, 4)
    together = gpu_lora.add_lora_slots(out.clone(), x, holed, rows_of(slots, 4))
    for row in (0, 7, 39):
        line = slice(row, row + 1)
        alone = gpu_lora.add_lora_slots(out[line].clone(), x[line], holed, rows_of(slots[line], 4))
        assert torch.equal(alone, together[line])


@pytest.mark.parametrize("rank", [8, 40])
def test_every_shape_gives_the_same(rank: int) -> None:
    given, holed = factors_of(2, rank, 1100, (48, 16), torch.float32)
    for count, block in ((20, 16), (260, 64)):
        slots, x, out = mixed(count, 2), torch.randn(count, 1100), torch.randn(count, 64)
        expected = add_lora_slots_ref(out.clone(), x, given, rows_of(slots, 2))
        shapes = [shape for shape, rows in shapes_of(1100, rank, 32) if rows == block]
        assert len(shapes) == (1 if block == 16 else 3)
        for shape in shapes:
            assert close(gpu_lora.add_lora_slots(out.clone(), x, holed, rows_of(slots, 2), shape), expected, x.dtype)


def test_shapes_that_are_compiled_are_all_that_are_chosen() -> None:
    for inputs in (64, 576, 3584, 18944):
        compiled = set(shapes_of(inputs, 16, 16))
        for segments, processors in ((1, 4), (3, 132)):
            for rows in (1, 40, 256, 257, 1000, 3000, 9000):
                block = 16 if rows <= 256 else 64
                assert (shape_for(rows, block, inputs, segments, 16, 16, processors), block) in compiled


@pytest.mark.parametrize("wanted", ["x", "out"])
def test_a_gradient_is_refused(wanted: str) -> None:
    given, _ = factors_of(1, 4, 16, (16,), torch.float32)
    tensors = {"x": torch.randn(2, 16), "out": torch.randn(2, 16)}
    tensors[wanted].requires_grad_()
    with torch.enable_grad(), pytest.raises(ValueError, match="no backward pass"):
        gpu_lora.add_lora_slots(tensors["out"], tensors["x"], given, rows_of(torch.ones(2, dtype=torch.int64), 1))


def test_types_are_not_mixed() -> None:
    given, _ = factors_of(1, 4, 16, (16,), torch.bfloat16)
    with pytest.raises(ValueError, match="not one type"):
        gpu_lora.add_lora_slots(torch.ones(1, 16), torch.ones(1, 16), given, rows_of(torch.tensor([1]), 1))
