"""The packings of safetensors: which stored tensors are one weight, and what they mean. `form`: as what it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

from opsin_plugins.spec import CodeForm, TensorInfo

GROUPS = (128, 64, 32)  # of codes of four bits, as opsin_kernels.int4_linear has them
LEAST = 16  # inputs of a group of 8-bit codes; a weight of smaller ones is kept as floats


class Part(NamedTuple):
    """A stored tensor, by its key."""

    key: str
    info: TensorInfo


@dataclass(frozen=True)
class Packed:
    """parts: by their role."""

    form: CodeForm | None
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class GptqPacking(Packed):
    """Source: the AutoGPTQ format. qweight I32 [K · bits / 32, N], bits of neighbours along K; scales [G, N]; qzeros
    I32 [G, N · bits / 32]; g_idx I32 [K]: the group of each input. shift: what is added to a stored zero (1 in version
    1)."""

    bits: int
    group: int
    shift: int


@dataclass(frozen=True)
class AwqPacking(Packed):
    """Source: the AutoAWQ format ("gemm"). qweight I32 [K, N / 8], four bits of neighbours along N in the order 0, 2,
    4, 6, 1, 3, 5, 7; scales [G, N]; qzeros I32 [G, N / 8], as the codes."""

    group: int


@dataclass(frozen=True)
class PackedInts(Packed):
    """Source: compressed-tensors' pack-quantized. packed I32 [N, K · bits / 32] of codes above -2^(bits - 1), scale
    [N, G], zero I32 [N · bits / 32, G] the same way along N, or none; g_idx as GPTQ's, or none."""

    bits: int
    group: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class PlainCodes(Packed):
    """weight I8 or F8_E4M3 [N, K], scale: one number, or [N] or [N, 1], or [N, G], or of blocks; zero I8 as scale, or
    none. block: rows and inputs that share a scale; 0: all. factor: of scale."""

    block: tuple[int, int]
    factor: float = 1.0


@dataclass(frozen=True)
class BnbPacking(Packed):
    """Source: bitsandbytes' 4-bit state. weight U8 [N · K / 2, 1], the first of two codes in the high bits; table F32
    [16]; absmax F32 of blocks of the flat weight. Nested: absmax U8 names numbers of nested_table F32 [256], times
    nested_absmax F32 of blocks of `nested_block`, plus `nested_offset`."""

    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float


def group_form(
    codes: Literal["int4", "int8", "fp8"], inputs: int, group: int, *, offset: bool = False, ordered: bool = False
) -> CodeForm | None:
    """For a weight whose every `group` inputs share a scale, the last ones maybe fewer. A format has the groups that it
    has: larger ones are cut, which changes no number. None: there is none."""
    common = gcd(group, inputs)
    if ordered and common != group:
        return None
    if codes == "int4":
        found = next((size for size in GROUPS if common % size == 0), None)
    else:
        found = common if common >= LEAST else None
    return None if found is None else CodeForm(codes, found, offset, ordered)
