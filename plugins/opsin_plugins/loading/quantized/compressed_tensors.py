"""compressed-tensors: groups of layers, each with a scheme of its own. Source: the format's schemas (config_groups)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin_plugins.loading.quantized.fields import choice, matches, pair, section, texts, whole
from opsin_plugins.loading.quantized.fp8 import ACTIVATIONS, plain_codes
from opsin_plugins.loading.quantized.packings import PackedInts, group_form
from opsin_plugins.loading.quantized.parts import Parts, shaped
from opsin_plugins.spec import SpecError, TensorInfo

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
UNREAD = ("weight_global_scale", "input_global_scale", "bitmask", "row_offsets", "meta")
PACKED = "weight_packed"


def read_compressed_tensors(config: Mapping[str, Any], parts: Parts) -> dict[str, TensorInfo]:
    _check(config)
    groups = section(config, "config_groups")
    found = {}
    for module in parts.modules(PACKED):
        found[f"{module}.weight"] = _packed(module, parts, section(_group_of(groups, module), "weights"))
    for module in parts.modules("weight"):
        if f"{module}.weight_scale" in parts:
            found[f"{module}.weight"] = _plain(module, parts, _group_of(groups, module))
    for module in parts.modules(*ACTIVATIONS):
        parts.drop(module, *ACTIVATIONS)
    return found


def _check(config: Mapping[str, Any]) -> None:
    formats = [config.get("format")] + [g.get("format") for g in section(config, "config_groups").values()]
    for name in formats:
        if name not in (None, "dense", "mixed-precision", *FORMATS):
            raise SpecError(
                f"compressed-tensors in the format {name!r:.60} is not read; there are {', '.join(FORMATS)}"
            )
    if any(section(config, name) for name in ("sparsity_config", "transform_config")):
        sparse = section(config, "sparsity_config").get("format", "dense") != "dense"
        if sparse or section(config, "transform_config").get("config_groups"):
            raise SpecError("compressed-tensors with sparsity or transforms is not read")


def _group_of(groups: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What is said of a module: by its name before by its class."""
    found: Mapping[str, Any] | None = None
    for group in groups.values():
        if not isinstance(group, Mapping):
            raise SpecError(f"quantization_config: a config group is {group!r:.60}")
        for target in texts(group, "targets"):
            if target == "Linear" and found is None:
                found = group
            elif _names(target, module):
                return group
    if found is None:
        raise SpecError(f"quantization_config: no config group has the target {module}")
    return found


def _names(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return matches(target.removeprefix("re:"), module)
    return module == target or module.endswith(f".{target}")


def _packed(module: str, parts: Parts, weights: Mapping[str, Any]) -> TensorInfo:
    bits = choice(weights, "num_bits", (4, 8))
    packed, scale = parts.take(module, PACKED, "I32"), parts.take(module, "weight_scale")
    zero, g_idx = parts.maybe(module, "weight_zero_point", "I32"), parts.maybe(module, "weight_g_idx", "I32")
    parts.drop(module, "weight_shape")
    (rows, words), per = shaped(packed, 2), 32 // bits
    inputs = words * per  # (a row whose codes do not fill its words is written by no tool)
    group = _group(weights, inputs)
    groups = -(-inputs // group)
    if scale.info.shape != (1,):  # (of the whole tensor)
        shaped(scale, rows, groups)
    taken = {"packed": packed, "scale": scale}
    if zero is not None:
        shaped(zero, -(-rows // per), groups)
        taken["zero"] = zero
    if g_idx is not None:
        shaped(g_idx, inputs)
        taken["g_idx"] = g_idx
    offset = bits == 4 or zero is not None
    ordered = g_idx is not None and groups > 1
    form = group_form("int4" if bits == 4 else "int8", inputs, group, offset=offset, ordered=ordered)
    packing = PackedInts(form, taken, bits, group, (rows, inputs))
    return TensorInfo(packed.info.file, f"packed {bits} bits", (rows, inputs), packing)


def _group(weights: Mapping[str, Any], inputs: int) -> int:
    strategy = choice(weights, "strategy", ("group", "channel", "tensor"), "group")
    size = whole(weights, "group_size", -1)
    return inputs if strategy != "group" or size == -1 else size


def _plain(module: str, parts: Parts, group: Mapping[str, Any]) -> TensorInfo:
    weights = section(group, "weights")
    strategy = choice(weights, "strategy", ("group", "channel", "tensor", "block"), "channel")
    sizes = pair(weights, "block_structure") if strategy == "block" else (0, 0)
    activations = _activations(section(group, "input_activations"))
    return plain_codes(module, parts, "weight_scale", sizes, zero_role="weight_zero_point", activations=activations)


def _activations(declared: Mapping[str, Any]) -> str:
    """As what they are to be quantized, whatever shares a scale. Those with zero points stay as they are: a scale alone
    would be less exact than what is declared."""
    if declared.get("num_bits") != 8 or declared.get("symmetric") is False:
        return ""
    return {"int": "int8", "float": "fp8"}.get(str(declared.get("type")), "")
