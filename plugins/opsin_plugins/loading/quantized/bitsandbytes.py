"""bitsandbytes: four bits with a state of their own, and 8-bit rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from opsin_plugins.loading.quantized.fp8 import plain_codes
from opsin_plugins.loading.quantized.packings import BnbPacking, Part
from opsin_plugins.loading.quantized.parts import Parts, shaped
from opsin_plugins.spec import CodeForm, SpecError, TensorInfo

STATE = "weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
GROUPS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
MAX_STATE = 65_536  # bytes


def read_bitsandbytes(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    found = {}
    for kind in KINDS:
        for module in parts.modules(f"{STATE}{kind}"):
            found[f"{module}.weight"] = _four_bits(module, kind, parts)
    for module in parts.modules("SCB"):
        parts.drop(module, "weight_format")
        found[f"{module}.weight"] = plain_codes(module, parts, "SCB", (0, 0), factor=1 / 127)
    return found


def _four_bits(module: str, kind: str, parts: Parts) -> TensorInfo:
    state = _state(parts.take(module, f"{STATE}{kind}", "U8"))
    rows, inputs = _shape(module, state)
    block, nested = _number(module, state, "blocksize"), "nested_blocksize" in state
    weight, absmax = parts.take(module, "weight", "U8"), parts.take(module, "weight.absmax", "U8" if nested else "F32")
    taken = {"weight": weight, "absmax": absmax, "table": parts.take(module, "weight.quant_map", "F32")}
    blocks = -(-rows * inputs // block)
    shaped(weight, -(-rows * inputs // 2), 1)
    shaped(absmax, blocks)
    shaped(taken["table"], 16)
    if nested:
        taken |= {
            "nested_absmax": parts.take(module, "weight.nested_absmax", "F32"),
            "nested_table": parts.take(module, "weight.nested_quant_map", "F32"),
        }
        shaped(taken["nested_absmax"], -(-blocks // _number(module, state, "nested_blocksize")))
        shaped(taken["nested_table"], 256)
    offset = state.get("nested_offset", 0.0)
    if not isinstance(offset, int | float):
        raise SpecError(f"{module}: nested_offset is {offset!r:.40}")
    fits = block in GROUPS and inputs % block == 0
    packing = BnbPacking(
        CodeForm("table4", block) if fits else None,
        taken,
        (rows, inputs),
        block,
        _number(module, state, "nested_blocksize") if nested else 0,
        float(offset),
    )
    return TensorInfo(weight.info.file, f"bitsandbytes {kind}", (rows, inputs), packing)


def _state(part: Part) -> dict[str, Any]:
    if len(part.info.shape) != 1 or part.info.shape[0] > MAX_STATE:
        raise SpecError(f"{part.key} has the shape {list(part.info.shape)}")
    try:
        with safe_open(part.info.file, framework="numpy") as opened:
            found = json.loads(opened.get_tensor(part.key).tobytes())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{part.key} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{part.key} is no object")
    return found


def _shape(module: str, state: Mapping[str, Any]) -> tuple[int, int]:
    found = state.get("shape")
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(n, int) and 0 < n < 2**31 for n in found):
        raise SpecError(f"{module}: its state has the shape {found!r:.60}")
    return found[0], found[1]


def _number(module: str, state: Mapping[str, Any], name: str) -> int:
    found = state.get(name)
    if not isinstance(found, int) or not 1 <= found <= 2**20:
        raise SpecError(f"{module}: {name} is {found!r:.40}")
    return found
