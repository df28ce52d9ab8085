"""The numbers that a server would compute with after it has quantized a model on the spot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opsin_kernels import kv_rows
from opsin_kernels.row_codes import quantize_rows
from opsin_plugins.blocks.weight_formats import FORMATS
from opsin_plugins.blocks.weight_policy import HEAD_FORMATS


@torch.no_grad()
def quantize(model: nn.Module, form: str, *, vision: bool) -> None:
    """Rounds the weights of an exported opsin-mini as `opsin serve --quantization` does; vision: with
    --quantize-vision. Rows are rounded alone, so that it does not matter which of them a server fuses."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # the head is tied to it
            _round(module.weight, HEAD_FORMATS.get(form, form))
    for module in _linears(model, vision):
        _round(module.weight, form)


def quantize_activations(model: nn.Module, form: str, *, vision: bool) -> None:
    """The same linears then meet rows as they are behind `--quantize-activations always`."""

    def rounded(module: nn.Module, given: tuple[Tensor]) -> Tensor:
        (x,) = given
        rows = x.flatten(1) if isinstance(module, nn.Conv3d) else x.flatten(0, -2)  # (a patch is a row)
        return quantize_rows(rows, kv_rows.KINDS[form]).dequantized().view_as(x)

    for module in _linears(model, vision):
        module.register_forward_pre_hook(rounded)


def kept_in_8_bits(rows: Tensor, kind: str) -> Tensor:
    """Keys or values, as attention finds them behind `--kv-dtype int8` or `fp8`."""
    return kv_rows.dequantize(kv_rows.quantize(rows, kv_rows.KINDS[kind]), rows.dtype)


def _linears(model: nn.Module, vision: bool) -> Iterator[nn.Linear | nn.Conv3d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and "lm_head" not in name and (vision or "visual" not in name):
            yield module


def _round(weight: nn.Parameter, form: str) -> None:
    flat = weight.data.flatten(1)
    if FORMATS[form].holds(flat.shape[1], len(flat)):
        held = FORMATS[form](flat.shape[1], len(flat))
        held.fill(0, flat)
        weight.copy_(held.dequantized().view_as(weight))
