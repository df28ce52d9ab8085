"""Projectors that were trained whole with an adapter: a dense copy a slot, beside the model's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model, declared_projector
from opsin_plugins.blocks.weight_format import Dense

PREFIX = "projector."


class TrainedProjectors:
    """count slots, numbered from 1 on. A projector that an adapter leaves alone is the model's and not a copy of it;
    what an adapter did not train of its own is copied from the model's."""

    def __init__(self, model: Model, count: int, device: torch.device, dtype: torch.dtype) -> None:
        assert isinstance(model.projector, nn.Module)
        assert model.spec.projector is not None
        self._base: nn.Module = model.projector
        self._modules: list[nn.Module] = []
        self._used: list[bool] = [False] * count
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                for _ in range(count):
                    module: nn.Module = declared_projector(model.spec.projector)
                    for path, linear in module.named_modules():
                        if isinstance(linear, Linear):
                            linear.allocate(PREFIX + path, Dense)
                    self._modules.append(module.eval())
        finally:
            torch.set_default_dtype(previous)

    def __getitem__(self, slot: int) -> nn.Module | None:
        return self._modules[slot - 1] if self._used[slot - 1] else None

    @torch.no_grad()
    def load(self, slot: int, trained: Mapping[str, Tensor]) -> None:
        """trained: by the path in the model; nothing: the adapter in this slot uses the model's."""
        self._used[slot - 1] = bool(trained)
        if not trained:
            return
        own = tensors_of(self._base)
        for name, place in tensors_of(self._modules[slot - 1]).items():
            given = trained.get(PREFIX + name)
            place.copy_(own[name] if given is None else given, non_blocking=True)


def tensors_of(projector: nn.Module) -> dict[str, Tensor]:
    """By the names that weight rules use. A dense weight is itself and no copy."""
    found: dict[str, Tensor] = {}
    for path, module in projector.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            found[f"{path}.{name}".removeprefix(".")] = parameter
        if isinstance(module, Linear):
            found[f"{path}.weight"] = module.stored.dequantized()
    return {name: tensor for name, tensor in found.items() if ".stored." not in name}
