"""A projector that is trained whole: the model's own module, computed with parameters that are handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from opsin_plugins.blocks.lora import Lora


class _Calls(nn.Module):
    """functional_call replaces parameters for one `forward`: this one's is any method of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *given: Any) -> Any:
        return getattr(self.module, method)(*given)


class TrainableProjector(nn.Module):
    """leaves: float32, by the names of the module's own parameters; cast to what the module computes in. Others are the
    module's."""

    def __init__(self, module: nn.Module, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._calls, self._leaves = [_Calls(module)], leaves  # (in a list: it is no part of this module)

    def counts(self, lengths: Sequence[int]) -> list[int]:
        found: list[int] = self._calls[0].module.counts(lengths)  # type: ignore[operator]
        return found

    def forward(self, x: Tensor, lengths: Sequence[int], lora: Lora | None = None) -> Tensor:
        return self._call("forward", x, x, lengths, lora)

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        return self._call("arrange", tokens, tokens, order)

    def _call(self, method: str, like: Tensor, *given: Any) -> Tensor:
        own = {f"module.{name}": leaf.to(like.dtype) for name, leaf in self._leaves.items()}
        found: Tensor = functional_call(self._calls[0], own, (method, *given))
        return found
