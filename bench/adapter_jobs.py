"""The additions of many adapters to one linear, as bench/kernels.py measures them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from device import Device
from kernel_job import Call, Job
from torch import Tensor

from opsin_kernels import lora
from opsin_kernels.slot_rows import SlotRows


def adapters(
    device: Device, linear: str, inputs: int, segments: tuple[int, ...], rank: int, rows: int, distinct: int
) -> Job:
    """rows: in as many runs as there are distinct adapters, which fill half of the slots."""
    columns = [slice(sum(segments[:n]), sum(segments[: n + 1])) for n in range(len(segments))]
    slots = torch.arange(rows, device=device.device) % distinct * 2 + 1
    sorted_rows = SlotRows(slots.sort().values, torch.arange(1, 2 * distinct + 2, device=device.device))
    ranks = torch.full((2 * distinct, len(segments)), rank, dtype=torch.int32, device=device.device)
    pieces = torch.tensor(lora.column_tiles(columns), dtype=torch.int32, device=device.device)
    _ = sorted_rows.tiles, sorted_rows.mine  # (made once a step, not once a linear)

    def make() -> tuple:
        a = device.random(2 * distinct, len(segments), rank, inputs) * inputs**-0.5
        b = device.random(2 * distinct, rank, sum(segments)) * rank**-0.5
        return device.random(rows, sum(segments)), device.random(rows, inputs), a, b

    def call(add: Callable[..., Tensor]) -> Call:
        def run(out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return add(out, x, lora.SlotFactors(a, b, ranks, columns, pieces), sorted_rows)

        return run

    def one_by_one(out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The library's products, two for each segment of each adapter."""
        for n, part in enumerate(torch.arange(rows).tensor_split(distinct)):
            span = slice(int(part[0]), int(part[-1]) + 1)
            for segment, place in enumerate(columns):
                lora.add_lora(out[span, place], x[span], a[2 * n, segment], b[2 * n, :, place])
        return out

    values = distinct * rank * (inputs * len(segments) + sum(segments)) + rows * (inputs + 2 * sum(segments))
    work = 2.0 * rows * rank * (inputs * len(segments) + sum(segments))
    name = f"lora rank {rank} of {linear}, {rows} rows of {distinct} adapters"
    others = {"torch, side by side": call(lora.add_lora_slots_ref), "torch, one by one": one_by_one}
    run, define = call(lora.add_lora_slots), call(lora.add_lora_slots_ref)
    return Job(name, make, run, define, others, values * device.dtype.itemsize, work, written=(0,))
