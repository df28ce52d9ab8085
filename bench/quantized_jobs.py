"""Products with quantized weights, as bench/kernels.py measures them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from device import Device
from kernel_job import Call, Job
from torch import Tensor

from opsin_kernels import activations, kv_rows
from opsin_kernels import rms_norm as norms
from opsin_kernels.row_codes import RowForm, quantize_rows_ref
from opsin_kernels.w8a8_linear import w8a8_linear_ref
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.weight_formats import Groups
from opsin_plugins.blocks.weight_policy import WeightPolicy

INT8 = RowForm(torch.int8)


def quantized(device: Device, form: str, name: str, rows: int, inputs: int, outputs: int) -> Job:
    """As the server quantizes; beside the library's product with the weight in 16 bit, whose bytes are more. The floor
    is that of the codes and scales."""

    def make() -> tuple:
        made = _held(device, form, inputs, outputs)
        return (device.random(rows, inputs), made, *made.buffers())  # (whose bytes are counted)

    def define(x: Tensor, made: Groups, *buffers: Tensor) -> Tensor:
        return F.linear(x, made.dequantized().to(x.dtype))

    wide = device.random(outputs, inputs) * inputs**-0.5

    def library(x: Tensor, *others: object) -> Tensor:
        return F.linear(x, wide)

    moved = _held(device, form, inputs, outputs).bytes + rows * (inputs + outputs) * device.dtype.itemsize
    words = f"{form} {name} {rows} x {inputs} to {outputs}"
    return Job(words, make, _product, define, {"torch, 16 bit": library}, moved, 2.0 * rows * inputs * outputs)


def w8a8(device: Device, form: str, name: str, rows: int, inputs: int, outputs: int) -> Job:
    """With rows that are quantized on the way; beside the same codes with rows as they are, and the library's product
    in 16 bit. The fraction of the ceiling is that of products in 16 bit, whose rate is half."""
    kind = kv_rows.KINDS[form]

    def make() -> tuple:
        both, plain = (_held(device, form, inputs, outputs, activations) for activations in (True, False))
        plain.load_state_dict(both.state_dict())
        return device.random(rows, inputs), both, plain, *both.buffers()

    def define(x: Tensor, both: Groups, *others: object) -> Tensor:
        return w8a8_linear_ref(quantize_rows_ref(x, RowForm(kind)), both.quantized, both.scale)

    def alone(x: Tensor, both: Groups, plain: Groups, *others: object) -> Tensor:
        return plain.product(x)

    wide = device.random(outputs, inputs) * inputs**-0.5
    beside: dict[str, Call] = {"rows as they are": alone, "torch, 16 bit": lambda x, *others: F.linear(x, wide)}
    moved = _held(device, form, inputs, outputs).bytes + rows * (inputs + outputs) * device.dtype.itemsize
    words = f"{form} w8a8 {name} {rows} x {inputs} to {outputs}"
    return Job(words, make, _product, define, beside, moved, 2.0 * rows * inputs * outputs)


def norm_codes(device: Device, rows: int, width: int) -> Job:
    """To int8, where codes that are one apart are as good as equal. The norm alone writes twice the bytes."""
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        return device.random(rows, width), device.random(rows, width), device.random(width)

    def run(x: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
        return norms.add_rms_norm_codes(x, delta, weight, floor, INT8)[1].codes

    def define(x: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
        return quantize_rows_ref(norms.rms_norm_ref(x + delta, weight, floor), INT8).codes

    def alone(x: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
        return norms.add_rms_norm(x, delta, weight, floor)[1]

    moved = rows * width * (3 * device.dtype.itemsize + 1)
    return Job(f"add and rms_norm to int8 {rows} x {width}", make, run, define, {"the norm alone": alone}, moved)


def gate_codes(device: Device, rows: int, width: int) -> Job:
    def run(x: Tensor) -> Tensor:
        return activations.gated_codes(x, "silu", INT8).codes

    def define(x: Tensor) -> Tensor:
        return quantize_rows_ref(activations.gated_ref(x, "silu"), INT8).codes

    alone: dict[str, Call] = {"the gate alone": lambda x: activations.gated(x, "silu")}
    moved = rows * width * (2 * device.dtype.itemsize + 1)
    return Job(
        f"silu gated to int8 {rows} x {width}", lambda: (device.random(rows, 2 * width),), run, define, alone, moved
    )


def _held(device: Device, form: str, inputs: int, outputs: int, activations: bool = False) -> Groups:
    before = torch.get_default_dtype()
    torch.set_default_dtype(device.dtype)  # small groups of a model in 16 bit have scales in 16 bit
    try:
        policy = WeightPolicy(form, activations=ActivationPolicy(frozenset(kv_rows.KINDS), always=activations))
        made = policy.choose("", inputs, outputs)(inputs, outputs)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(made, Groups)
    made = made.to(device.device)
    made.fill(0, device.random(outputs, inputs) * inputs**-0.5)
    return made


def _product(x: Tensor, made: Groups, *others: object) -> Tensor:
    return made.product(x)
