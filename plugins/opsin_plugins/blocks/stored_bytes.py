"""In what a model's weights are stored, and how many bytes each format takes."""

from __future__ import annotations

from torch import nn

from opsin_plugins.blocks.segmented import Segmented
from opsin_plugins.blocks.weight_format import Dense, Half, WeightFormat
from opsin_plugins.blocks.weight_formats import Groups


def stored_bytes(model: nn.Module) -> dict[str, int]:
    """By the name of the format, the largest first: "int4 by 128", "int8", "int8 w8a8" (whose activations are in 8
    bits, too), "bfloat16" (of what is no codes)."""
    found: dict[str, int] = {}
    counted: set[int] = set()

    def add(label: str, module: nn.Module, *, deep: bool) -> None:
        for tensor in (*module.parameters(recurse=deep), *module.buffers(recurse=deep)):
            if id(tensor) not in counted:
                counted.add(id(tensor))
                name = label or str(tensor.dtype).removeprefix("torch.")
                found[name] = found.get(name, 0) + tensor.nbytes

    for module in model.modules():
        if isinstance(module, WeightFormat) and not isinstance(module, Segmented | Dense | Half):
            add(_label(module), module, deep=True)
    for module in model.modules():
        add("", module, deep=False)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _label(module: WeightFormat) -> str:
    if not isinstance(module, Groups):
        return module.name
    groups = f" by {module.form.group}" if module.form.group != module.inputs else ""
    return f"{module.name}{groups}{' w8a8' if module.form.activations else ''}"
