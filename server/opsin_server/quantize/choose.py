"""Which of a checkpoint's tensors are rounded, and how the configuration names those that are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from opsin_plugins.blocks.checkpoint import Checkpoint
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.weight_format import Dense
from opsin_plugins.blocks.weight_policy import HEAD, WeightPolicy
from opsin_plugins.spec import TensorInfo


def chosen_keys(
    model: Model, checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], policy: WeightPolicy
) -> dict[str, str]:
    """Published weights of linears that the format can hold, and the path of the first linear that each is of, in the
    model's order. A head stays as it is: few programs read it packed."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Linear) or path == HEAD:
            continue
        if policy.choose(path, module.inputs, module.outputs) is not Dense:
            for source in checkpoint.plan[f"{path}.weight"]:
                if len(tensors[source.key].shape) == 2:  # and no kernel of a convolution
                    found.setdefault(source.key, path)
    return found


def ignored(tensors: Mapping[str, TensorInfo], chosen: Iterable[str]) -> list[str]:
    """Modules that stay as they are, as other programs match them: these may have put something in front of the names,
    so they are patterns; of a part of which nothing was rounded, one."""
    matrices = [
        key.removesuffix(".weight") for key, info in tensors.items() if len(info.shape) > 1 and key.endswith("t")
    ]
    rounded = {key.removesuffix(".weight") for key in chosen}
    parts = {_part(name) for name in rounded}
    found = ["lm_head"]
    for name in matrices:
        if name in rounded or name == "lm_head":
            continue
        alone = _part(name) not in parts
        found.append(rf"re:(.*\.)?{re.escape(_part(name))}(\..*)?$" if alone else rf"re:(.*\.)?{re.escape(name)}$")
    return list(dict.fromkeys(found))


def _part(name: str) -> str:
    """What it belongs to: "visual" of visual.blocks.0.attn.qkv and of model.visual.blocks.0.attn.qkv."""
    return name.removeprefix("model.").split(".")[0]
