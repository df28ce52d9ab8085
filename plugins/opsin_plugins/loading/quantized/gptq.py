"""GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin_plugins.loading.quantized.fields import choice, matches, section, whole
from opsin_plugins.loading.quantized.packings import AwqPacking, GptqPacking, Part, group_form
from opsin_plugins.loading.quantized.parts import Parts, shaped
from opsin_plugins.spec import SpecError, TensorInfo

BITS = (4, 8)


def read_gptq(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    """Weights by their published names. `dynamic` gives layers numbers of their own, or leaves them alone."""
    shift = 0 if choice(config, "checkpoint_format", ("gptq", "gptq_v2"), "gptq") == "gptq_v2" else 1
    found = {}
    for module in parts.modules("qweight"):
        own = {**config, **_of_layer(config, module)}
        bits, group = choice(own, "bits", BITS), whole(own, "group_size", -1)
        found[f"{module}.weight"] = _gptq(module, parts, bits, group, shift, bool(own.get("desc_act")))
    return found


def _of_layer(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """Numbers of its own. (A pattern that begins with "-:" leaves layers alone: these have no qweight.)"""
    for pattern, numbers in section(config, "dynamic").items():
        if (
            not pattern.startswith("-:")
            and isinstance(numbers, Mapping)
            and matches(pattern.removeprefix("+:"), module)
        ):
            return numbers
    return {}


def _gptq(module: str, parts: Parts, bits: int, group: int, shift: int, ordered: bool) -> TensorInfo:
    qweight, scales = parts.take(module, "qweight", "I32"), parts.take(module, "scales")
    qzeros, g_idx = parts.take(module, "qzeros", "I32"), parts.maybe(module, "g_idx", "I32")
    (rows, outputs), per = shaped(qweight, 2), 32 // bits
    inputs = rows * per
    group = inputs if group == -1 else group
    groups = -(-inputs // group)
    shaped(scales, groups, outputs)
    shaped(qzeros, groups, -(-outputs // per))
    taken = {"qweight": qweight, "scales": scales, "qzeros": qzeros}
    if g_idx is not None:
        shaped(g_idx, inputs)
        taken["g_idx"] = g_idx
    elif ordered:
        raise SpecError(f"{module} has no g_idx, which desc_act needs")
    form = group_form("int4" if bits == 4 else "int8", inputs, group, offset=True, ordered=ordered and groups > 1)
    packing = GptqPacking(form, taken, bits, group, shift)
    return TensorInfo(qweight.info.file, f"gptq {bits} bits", (outputs, inputs), packing)


def read_awq(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    choice(config, "bits", (4,))
    choice(config, "version", ("gemm", "GEMM"), "gemm")
    group, found = whole(config, "group_size", -1), {}
    for module in parts.modules("qweight"):
        qweight, scales = parts.take(module, "qweight", "I32"), parts.take(module, "scales")
        qzeros = parts.maybe(module, "qzeros", "I32")
        inputs, columns = shaped(qweight, 2)
        outputs, size = 8 * columns, inputs if group == -1 else group
        shaped(scales, -(-inputs // size), outputs)
        taken: dict[str, Part] = {"qweight": qweight, "scales": scales}
        if qzeros is not None:
            shaped(qzeros, -(-inputs // size), columns)
            taken["qzeros"] = qzeros
        packing = AwqPacking(group_form("int4", inputs, size, offset=True), taken, size)
        found[f"{module}.weight"] = TensorInfo(qweight.info.file, "awq 4 bits", (outputs, inputs), packing)
    return found
