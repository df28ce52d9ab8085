"""How a checkpoint packs a weight, and as what the codes in it are kept: known from headers, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class CodeForm:
    """A weight [N, K] of codes: row n, input k is value(code) * scale + offset, by groups of inputs.

    codes: "int4", 0 to 15; "int8", -128 to 127; "fp8", float8 (e4m3); "table4", names of 16 numbers. group: inputs that
    share a scale, of which K is a multiple. offset: whether groups have one. ordered: whether the groups are of inputs
    in an order of the weight's own. half: whether scales and offsets are float16 numbers, so that nothing is lost of
    them in 16 bit. activations: whether what the weight is multiplied with is quantized to codes of the same kind, a
    scale a row (W8A8), as a checkpoint declares or an operator wants it.
    """

    codes: Literal["int4", "int8", "fp8", "table4"]
    group: int
    offset: bool = False
    ordered: bool = False
    half: bool = False
    activations: bool = False


class Packing(Protocol):
    """Of one weight. `opsin_plugins.blocks.unpack` has what reads each kind."""

    @property
    def form(self) -> CodeForm | None:
        """As what it is kept; None: it is a float again."""
