"""Products with quantized weights, as bench/kernels.py measures them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from device import Device
from kernel_job import Job
from torch import Tensor

from opsin_plugins.blocks.weight_formats import FORMATS, Groups


def quantized(device: Device, form: str, name: str, rows: int, inputs: int, outputs: int) -> Job:
    """As the server quantizes; beside the library's product with the weight in 16 bit, whose bytes are more. The floor
    is that of the codes and scales."""

    def held() -> Groups:
        before = torch.get_default_dtype()
        torch.set_default_dtype(device.dtype)  # small groups of a model in 16 bit have scales in 16 bit
        try:
            made = FORMATS[form](inputs, outputs)
        finally:
            torch.set_default_dtype(before)
        assert isinstance(made, Groups)
        made = made.to(device.device)
        made.fill(0, device.random(outputs, inputs) * inputs**-0.5)
        return made

    def make() -> tuple:
        made = held()
        return (device.random(rows, inputs), made, *made.buffers())  # (whose bytes are counted)

    def run(x: Tensor, made: Groups, *buffers: Tensor) -> Tensor:
        return made.product(x)

    def define(x: Tensor, made: Groups, *buffers: Tensor) -> Tensor:
        return F.linear(x, made.dequantized().to(x.dtype))

    wide = device.random(outputs, inputs) * inputs**-0.5

    def library(x: Tensor, *others: object) -> Tensor:
        return F.linear(x, wide)

    moved = held().bytes + rows * (inputs + outputs) * device.dtype.itemsize
    words = f"{form} {name} {rows} x {inputs} to {outputs}"
    return Job(words, make, run, define, {"torch, 16 bit": library}, moved, 2.0 * rows * inputs * outputs)
