"""Weights of float8 or int8 as plain tensors, with scales: fine-grained fp8, and what several tools call fp8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from opsin_plugins.loading.quantized.fields import choice, pair
from opsin_plugins.loading.quantized.packings import Part, PlainCodes, group_form
from opsin_plugins.loading.quantized.parts import Parts, shaped
from opsin_plugins.spec import CodeForm, SpecError, TensorInfo

KINDS: Mapping[str, Literal["int8", "fp8"]] = {"I8": "int8", "F8_E4M3": "fp8"}
ACTIVATIONS = ("input_scale", "input_zero_point", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
DECLARED = ("activation_scheme", "activation_scale_ub")  # what says that activations are quantized
SCALES = ("weight_scale_inv", "weight_scale")


def read_fp8(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    """Scales of activations are left alone: where activations are quantized, each row has a scale of its own."""
    sizes = (0, 0) if config.get("weight_block_size") is None else pair(config, "weight_block_size")
    choice(config, "fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    declared = any(config.get(name) is not None for name in DECLARED)
    found = {}
    for module in parts.modules("weight"):
        if (scale := next((role for role in SCALES if f"{module}.{role}" in parts), None)) is not None:
            found[f"{module}.weight"] = plain_codes(module, parts, scale, sizes, activations="fp8" if declared else "")
        parts.drop(module, *ACTIVATIONS)
    return found


def plain_codes(
    module: str,
    parts: Parts,
    scale_role: str,
    block: tuple[int, int],
    factor: float = 1.0,
    zero_role: str = "",
    role: str = "weight",
    activations: str = "",
) -> TensorInfo:
    """block: rows and inputs that share a scale; (0, 0): what the scale's own shape says. role: of the codes.
    activations: as what they are declared to be quantized; it counts where the weight is the same."""
    weight, scale = parts.take(module, role), parts.take(module, scale_role)
    if weight.info.dtype not in KINDS:
        raise SpecError(f"{weight.key} is stored as {weight.info.dtype}; there are {', '.join(KINDS)}")
    shape, kind = shaped(weight, 2), KINDS[weight.info.dtype]
    zero = parts.maybe(module, zero_role) if zero_role else None
    block = _block(shape, scale, block)
    taken = {"weight": weight, "scale": scale} | ({} if zero is None else {"zero": zero})
    form: CodeForm | None = group_form(kind, shape[1], block[1], offset=zero is not None)
    if kind == "fp8" and zero is not None:
        raise SpecError(f"{weight.key} is a float8 with a zero point")
    if form is not None and activations == kind:
        form = replace(form, activations=True)
    return TensorInfo(weight.info.file, weight.info.dtype, shape, PlainCodes(form, taken, block, factor))


def _block(shape: tuple[int, int], scale: Part, block: tuple[int, int]) -> tuple[int, int]:
    """Rows and inputs that share a scale. Raises SpecError where the scales are not as many as that needs."""
    rows, inputs = shape
    sizes = scale.info.shape
    if sizes in ((), (1,), (1, 1)):
        return rows, inputs
    if block == (0, 0):
        if sizes in ((rows,), (rows, 1)):
            return 1, inputs
        groups = sizes[1] if len(sizes) == 2 and sizes[0] == rows else 0
        if groups and inputs % groups == 0:
            return 1, inputs // groups
    elif sizes == (-(-rows // block[0]), -(-inputs // block[1])):
        return block
    raise SpecError(f"{scale.key} has the shape {list(sizes)}, which fits no blocks of a weight {list(shape)}")
