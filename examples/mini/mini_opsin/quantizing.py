"""The numbers that a server would compute with after it has quantized a model on the spot."""

from __future__ import annotations

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
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):  # the head is tied to it
            _round(module.weight, HEAD_FORMATS.get(form, form))
        elif isinstance(module, nn.Linear | nn.Conv3d) and "lm_head" not in name and (vision or "visual" not in name):
            _round(module.weight, form)


def kept_in_8_bits(rows: Tensor, kind: str) -> Tensor:
    """Keys or values, as attention finds them behind `--kv-dtype int8` or `fp8`."""
    return kv_rows.dequantize(kv_rows.quantize(rows, kv_rows.KINDS[kind]), rows.dtype)


def met_in_8_bits(rows: Tensor, kind: str) -> Tensor:
    """Inputs, as linear layers of `kind` find them behind `--quantize-activations always`."""
    return quantize_rows(rows.flatten(0, -2), kv_rows.KINDS[kind]).dequantized().view_as(rows)


def _round(weight: nn.Parameter, form: str) -> None:
    flat = weight.data.flatten(1)
    if FORMATS[form].holds(flat.shape[1], len(flat)):
        held = FORMATS[form](flat.shape[1], len(flat))
        held.fill(0, flat)
        weight.copy_(held.dequantized().view_as(weight))
