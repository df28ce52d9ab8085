"""torchao's weights as transformers saves them in safetensors: a tensor subclass taken apart into its tensors, and its
class in the file's header. Source: the library's own taking apart (torchao.prototype.safetensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from opsin_plugins.loading.quantized.fields import pair
from opsin_plugins.loading.quantized.fp8 import plain_codes
from opsin_plugins.loading.quantized.parts import Parts
from opsin_plugins.spec import SpecError, TensorInfo

CODES, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
KINDS = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")  # whose codes lie one by one
ACTIVATIONS = ("_weight_act_quant_scale", "_weight_act_quant_zero_point")


def read_torchao(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    """Activations are not quantized here: their scales are left alone. What quantization_config says is how the weights
    were made; what they are is in the header."""
    headers: dict[Path, Mapping[str, str]] = {}
    found = {}
    for module in parts.modules(CODES):
        file = parts.take(module, CODES).info.file
        if file not in headers:
            headers[file] = _header(file)
        block = pair(_described(f"{module}.weight", headers[file]), "block_size")
        parts.drop(module, *ACTIVATIONS)
        found[f"{module}.weight"] = plain_codes(module, parts, SCALE, block, zero_role=ZERO, role=CODES)
    return found


def _header(file: Path) -> Mapping[str, str]:
    """What a file says beside its tensors, whose places in it are known already."""
    with safe_open(file, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def _described(name: str, header: Mapping[str, str]) -> Mapping[str, Any]:
    """What the header says of a weight. Raises SpecError for one of a class that is not read."""
    try:
        said = json.loads(header.get(name, "null"))
    except (ValueError, RecursionError):
        said = None
    kind = said.get("_type") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or kind not in KINDS:
        raise SpecError(f"{name} is of the class {kind!r:.60}, which is not read; there are {', '.join(KINDS)}")
    data = said.get("_data")
    return data if isinstance(data, Mapping) else {}
