"""The linears of a model, by name: known without torch and without a built model, so that an adapter can be checked
before the engine hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LinearShape:
    """inputs; segments: outputs, one a published layer that is fused here (q, k and v), each of which has low-rank
    factors of its own."""

    inputs: int
    segments: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.segments)


Linears = Mapping[str, LinearShape]
"""By the path of the module, under the module that has them: "layers.0.attention.qkv" of a tower."""


def under(prefix: str, linears: Linears) -> dict[str, LinearShape]:
    """The same, as the module `prefix` has them."""
    return {f"{prefix}.{name}": shape for name, shape in linears.items()}


def attention_linears(width: int, query: int, key_value: int) -> dict[str, LinearShape]:
    """q, k and v fused, and the projection behind them."""
    return {"qkv": LinearShape(width, (query, key_value, key_value)), "out": LinearShape(query, (width,))}


def mlp_linears(width: int, hidden: int, out: int, gated: bool) -> dict[str, LinearShape]:
    """A gated one has gate and up fused."""
    first = {"gate_up": LinearShape(width, (hidden, hidden))} if gated else {"up": LinearShape(width, (hidden,))}
    return {**first, "down": LinearShape(hidden, (out,))}
