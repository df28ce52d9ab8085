"""What quantized weights stand for, as every kernel that reads them finds it: a step of a row's bytes at a time.

Codes become float32 numbers exactly, and by no instruction that turns an integer into a float, which on many chips
runs at a fraction of the others' rate: a code in the low bits of 2^23, whose numbers are one apart, has 2^23 taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver

from opsin_kernels.cpu.linear import PARTS, Form
from opsin_kernels.kv_rows import KINDS

FORMS = {kind: name for name, kind in KINDS.items()}  # of codes that are one a byte
E4M3 = 89  # the first chip with an instruction that reads float8 (e4m3)


@dataclass(frozen=True)
class Weight:
    """W [N, K] as its definition has it: codes [N, K] of 8 bits or U8 [N, K / 2] of twice 4, scale [N, G], offset
    [N, G] or None, table F32 [16] of "table4"."""

    form: Form
    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None
    table: Tensor | None = None

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def inputs(self) -> int:
        return self.codes.shape[1] * self.parts

    @property
    def parts(self) -> int:
        """Codes of a byte."""
        return PARTS.get(self.form, 1)

    @property
    def groups(self) -> int:
        return self.scale.shape[1]

    @property
    def span(self) -> int:
        """Bytes of a group; 0: one group is the whole row."""
        return 0 if self.groups == 1 else self.codes.shape[1] // self.groups

    def pointers(self) -> tuple[Tensor | None, ...]:
        """As the kernels take them, codes as bytes."""
        return self.codes.view(torch.uint8), self.scale, self.offset, self.table


def groups_of_a_step(span: int, step: int) -> int:
    """Small groups are read several at a time."""
    return step // span if span and step % span == 0 else 1


def steps_of(weight: Weight, step: int, many: int) -> int:
    """How many steps a row takes. Where `many` is 1, none reaches from one group into the next."""
    if many > 1 or not weight.span:
        return triton.cdiv(weight.codes.shape[1], step)
    return weight.groups * triton.cdiv(weight.span, step)


def reads_e4m3() -> bool:
    """Whether the chip does; the interpreter reads bits, as older chips do."""
    return not knobs.runtime.interpret and driver.active.get_current_target().arch >= E4M3


@triton.jit
def places_of(step, row_bytes, PARTS: tl.constexpr, SPAN: tl.constexpr, MANY: tl.constexpr, STEP: tl.constexpr):
    """Of a step: its first group, its bytes in the row, which of them there are, and the inputs that their codes
    belong to: the low (or only) one's and the high one's."""
    b = tl.arange(0, STEP)
    if SPAN == 0:
        group = 0
        byte = step * STEP + b
        there = byte < row_bytes
        low = byte
        high = byte + row_bytes
    elif MANY > 1:
        group = step * MANY
        byte = step * STEP + b
        there = byte < row_bytes
        low = byte // SPAN * (PARTS * SPAN) + byte % SPAN
        high = low + SPAN
    else:
        steps: tl.constexpr = (SPAN + STEP - 1) // STEP
        group = step // steps
        within = step % steps * STEP + b
        there = within < SPAN
        byte = group * SPAN + within
        low = group * (PARTS * SPAN) + within
        high = low + SPAN
    return group, byte, there, low, high


@triton.jit
def numbers_of(codes, table_ptr, FORM: tl.constexpr, HARDWARE: tl.constexpr):
    """codes U8 [N, STEP], those of four bits one a number -> F32."""
    if FORM == "table4":
        flat = tl.reshape(codes.to(tl.int32), (codes.shape[0] * codes.shape[1],))
        found = tl.reshape(tl.gather(tl.load(table_ptr + tl.arange(0, 16)), flat, 0), codes.shape)
    elif FORM == "int4":
        found = (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    elif FORM == "int8":
        found = (codes.to(tl.int32) ^ 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0
    elif HARDWARE:
        found = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:  # its bits are those of a float32 that is 2^120 times as small, subnormal numbers too
        wide = codes.to(tl.int32)
        small = (((wide & 0x80) << 24) | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True)
        found = tl.where((wide & 0x7F) == 0x7F, float("nan"), small * 1.329227995784916e36)
    return found


@triton.jit
def codes_of(numbers, FORM: tl.constexpr):
    """The opposite, of 8 bits: F32 that are no larger than the largest code -> U8, rounded to nearest, ties to even. By
    bits, so that every chip and the interpreter do the same."""
    bits = numbers.to(tl.int32, bitcast=True)
    if FORM == "int8":
        found = (numbers + 12582912.0).to(tl.int32, bitcast=True)
    else:
        size = tl.abs(numbers)
        wide = size.to(tl.int32, bitcast=True)
        normal = ((wide + 0x7FFFF + ((wide >> 20) & 1)) >> 20) - 960
        subnormal = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        found = tl.where(size < 0.015625, subnormal, normal) | ((bits >> 24) & 0x80)
    return (found & 0xFF).to(tl.uint8)


@triton.jit
def scale_for(largest, LARGEST: tl.constexpr):
    """largest F32: the size of the largest of some numbers -> the scale of their codes, as the definitions have it."""
    return tl.div_rn(tl.maximum(largest, 1e-12), LARGEST)


@triton.jit
def scaled_codes(numbers, scale, FORM: tl.constexpr, LARGEST: tl.constexpr):
    """numbers F32 -> U8."""
    return codes_of(tl.minimum(tl.maximum(tl.div_rn(numbers, scale), -LARGEST), LARGEST), FORM)


@triton.jit
def sixteenths_of(codes):
    """codes U8 of twice four bits -> 1 + code / 16 of the low and of the high ones, F32: numbers that cost less, and of
    which a scale and an offset make the weight, but for a millionth of the scale."""
    wide = codes.to(tl.int32)
    lows = (((wide << 19) & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)
    highs = (((wide << 15) & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)
    return lows, highs


@triton.jit
def meant(numbers, factors, offsets, OFFSET: tl.constexpr):
    """numbers F32 [N, STEP] times factors [N, MANY], plus offsets [N, MANY]."""
    rows: tl.constexpr = numbers.shape[0]
    many: tl.constexpr = factors.shape[1]
    found = tl.reshape(numbers, (rows, many, numbers.shape[1] // many)) * factors[:, :, None]
    if OFFSET:
        found += offsets[:, :, None]
    return tl.reshape(found, numbers.shape)
