"""Drawing one token a row without a sort: the smallest weight that stays is found by bisection over its bits.

A weight is e^((logit - largest) / temperature), so the largest is 1. Weights are not negative, so their bits order as
integers do. One program a row. Bisection ends as soon as at most one token is left between the bounds: 10 to 15 passes
for usual settings, 30 at most. So that they do not all read a vocabulary, tokens of some weight are first copied out,
in order: where top-k or top-p end among them, which is usual, everything else happens in that short list.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu import COLDEST

STEP = 4096
SHORT = 8192  # tokens that are copied out at most
FAINT = 2.0**-17  # weights below are not
ONE = 0x3F800000  # the bits of 1.0


@triton.jit
def logits_at(row_ptr, at, size):
    """Logits F32 [STEP]; -inf outside the vocabulary and for a NaN, which is never drawn."""
    x = tl.load(row_ptr + at, mask=at < size, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def weighed(x, largest, temperature):
    """Weights F32 [STEP] of logits; largest: finite. What is less weighs less than 1, whatever rounding would say, so
    that no filter puts it before the largest."""
    return tl.where(x == largest, 1.0, tl.minimum(tl.exp((x - largest) / temperature), 1 - 2.0**-24))


@triton.jit
def weights_at(row_ptr, at, size, largest, temperature):
    """Weights F32 [STEP]; 0 outside the vocabulary."""
    return weighed(logits_at(row_ptr, at, size), largest, temperature)


@triton.jit
def reach(row_ptr, size, largest, temperature, bits, STEP: tl.constexpr):
    """How many tokens weigh at least `bits`, and how much together."""
    count = tl.zeros((), tl.int32)
    mass = tl.zeros((), tl.float32)
    for start in range(0, size, STEP):
        at = start + tl.arange(0, STEP)
        weight = weights_at(row_ptr, at, size, largest, temperature)
        stays = (weight.to(tl.int32, bitcast=True) >= bits) & (at < size)
        count += tl.sum(stays.to(tl.int32), 0)
        mass += tl.sum(tl.where(stays, weight, 0.0), 0)
    return count, mass


@triton.jit
def bisect(
    row_ptr, size, largest, temperature, low, low_count, wanted_count, wanted_mass,
    STEP: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The largest bits whose tokens are at least `wanted_count` and weigh at least `wanted_mass`; then the count and
    the mass of what lies above the bounds, and whether tokens of equal weight may be left between them."""
    high = tl.zeros((), tl.int32) + TOP
    high_count = tl.zeros((), tl.int32)
    high_mass = tl.zeros((), tl.float32)
    while (low_count - high_count > 1) & (high - low > 1):
        middle = low + (high - low) // 2
        count, mass = reach(row_ptr, size, largest, temperature, middle, STEP)
        enough = (count >= wanted_count) & (mass >= wanted_mass)
        low = tl.where(enough, middle, low)
        low_count = tl.where(enough, count, low_count)
        high = tl.where(enough, high, middle)
        high_count = tl.where(enough, high_count, count)
        high_mass = tl.where(enough, high_mass, mass)
    return low, low_count, high_count, high_mass


@triton.jit
def kept_at(row_ptr, at, size, largest, temperature, bits, equals, seen, floor):
    """Weights of the tokens that stay, 0 elsewhere, and how many of weight `bits` were met. Of those only the first
    `equals` stay; `seen` were met before."""
    weight = weights_at(row_ptr, at, size, largest, temperature)
    key = weight.to(tl.int32, bitcast=True)
    equal = ((key == bits) & (at < size)).to(tl.int32)
    first = seen + tl.cumsum(equal, 0) <= equals
    stays = (at < size) & (weight >= floor) & ((key > bits) | ((equal != 0) & first))
    return tl.where(stays, weight, 0.0), seen + tl.sum(equal, 0)


@triton.jit
def drawn(
    row_ptr, size, largest, temperature, top_k, top_p, floor, uniform, rest, fallback,
    STEP: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The place of the drawn token; rest: weight of tokens that are not here, which count for top-p alone."""
    bits = tl.zeros((), tl.int32)
    count = tl.zeros((), tl.int32) + size
    equals = tl.zeros((), tl.int32) + size  # how many tokens of weight `bits` stay
    if (top_k > 0) & (top_k < size):
        bits, count, above, mass = bisect(row_ptr, size, largest, temperature, bits, count, top_k, 0.0, STEP, TOP)
        equals = top_k - above
    if top_p < 1:
        all_above, mass_above = reach(row_ptr, size, largest, temperature, bits + 1, STEP)
        edge = bits.to(tl.float32, bitcast=True)
        kept_equal = tl.minimum(equals, count - all_above).to(tl.float32)
        wanted = top_p * (mass_above + kept_equal * edge + rest)
        low, count, above, mass = bisect(row_ptr, size, largest, temperature, bits, count, 1, wanted, STEP, TOP)
        weight = low.to(tl.float32, bitcast=True)
        needed = tl.ceil((wanted - mass) / tl.maximum(weight, 1e-38))
        needed = tl.minimum(tl.maximum(needed, 1.0), 1e9).to(tl.int32)
        equals = tl.where(low > bits, needed, tl.minimum(equals, needed))
        bits = low

    total = tl.zeros((), tl.float64)
    seen = tl.zeros((), tl.int32)
    for start in range(0, size, STEP):
        at = start + tl.arange(0, STEP)
        weight, seen = kept_at(row_ptr, at, size, largest, temperature, bits, equals, seen, floor)
        total += tl.sum(weight, 0).to(tl.float64)

    # Inverse distribution in vocabulary order; the fallback stays the answer should rounding leave none.
    chosen = fallback
    target = uniform * total
    passed = tl.zeros((), tl.float64)
    seen = tl.zeros((), tl.int32)
    start = tl.zeros((), tl.int32)
    while start < size:
        at = start + tl.arange(0, STEP)
        weight, seen = kept_at(row_ptr, at, size, largest, temperature, bits, equals, seen, floor)
        here = tl.sum(weight, 0).to(tl.float64)
        start += STEP
        if (passed + here > target) & (here > 0):
            reached = (tl.cumsum(weight, 0) > (target - passed).to(tl.float32)) & (weight > 0)
            last = tl.max(tl.where(weight > 0, at, 0), 0)
            chosen = tl.minimum(tl.min(tl.where(reached, at, size), 0), last)
            start = tl.zeros((), tl.int32) + size
        passed += here
    return chosen


@triton.jit
def copy_out(
    row_ptr, short_ptr, places_ptr, size, largest, temperature, STEP: tl.constexpr, SHORT: tl.constexpr,
    FAINT: tl.constexpr,
):  # fmt: skip
    """Logits of weight FAINT and more, and their places, in order; returns how many there are, what they weigh and what
    all others weigh."""
    count = tl.zeros((), tl.int32)
    mass = tl.zeros((), tl.float32)
    rest = tl.zeros((), tl.float32)
    for start in range(0, size, STEP):
        at = start + tl.arange(0, STEP)
        x = logits_at(row_ptr, at, size)
        weight = weighed(x, largest, temperature)
        strong = weight >= FAINT
        place = count + tl.cumsum(strong.to(tl.int32), 0) - 1
        fits = strong & (place < SHORT)
        tl.store(short_ptr + place, x, mask=fits)
        tl.store(places_ptr + place, at, mask=fits)
        count += tl.sum(strong.to(tl.int32), 0)
        mass += tl.sum(tl.where(strong, weight, 0.0), 0)
        rest += tl.sum(tl.where(strong, 0.0, weight), 0)
    tl.debug_barrier()  # other threads of this program read what was stored
    return count, mass, rest


@triton.jit
def draw_rows(
    logits_ptr,  # [B, V], rows `stride` apart
    settings_ptr,  # F64 [B, 5]: temperature, top-k, top-p, min-p, uniform
    short_ptr,  # F32 [B, SHORT], scratch
    places_ptr,  # I32 [B, SHORT], scratch
    out_ptr,  # I64 [B]
    stride,
    size,  # V
    STEP: tl.constexpr,
    TOP: tl.constexpr,  # bits that no weight reaches
    SHORT: tl.constexpr,
    FAINT: tl.constexpr,
    COLDEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    temperature = tl.load(settings_ptr + row * 5).to(tl.float32)
    top_k = tl.load(settings_ptr + row * 5 + 1).to(tl.int32)
    top_p = tl.load(settings_ptr + row * 5 + 2).to(tl.float32)
    floor = tl.load(settings_ptr + row * 5 + 3).to(tl.float32)
    uniform = tl.load(settings_ptr + row * 5 + 4)

    largest = tl.full((), float("-inf"), tl.float32)
    chosen = tl.zeros((), tl.int32)
    for start in range(0, size, STEP):
        at = start + tl.arange(0, STEP)
        x = logits_at(row_ptr, at, size)
        here = tl.max(x, 0)
        if here > largest:
            largest = here
            chosen = tl.min(tl.where(x == here, at, size), 0)

    if (temperature >= COLDEST) & (tl.abs(largest) < float("inf")):
        filtered = ((top_k > 0) & (top_k < size)) | (top_p < 1) | (floor >= FAINT)
        count = tl.zeros((), tl.int32)
        rest = tl.zeros((), tl.float32)
        short, places = short_ptr + row * SHORT, places_ptr + row * SHORT
        if filtered:
            count, mass, rest = copy_out(row_ptr, short, places, size, largest, temperature, STEP, SHORT, FAINT)
            # top-k ends in the list, and then top-p, which looks at those alone; else top-p must end there.
            if top_k > 0:
                ends = (count >= top_k) | ((floor >= FAINT) & (top_p >= 1))
                rest = tl.where(count >= top_k, 0.0, rest)
            else:
                ends = (mass >= top_p * (mass + rest) * 1.00001) | (floor >= FAINT)
            filtered = ends & (count <= SHORT) & (count > 0)
        if filtered:
            nothing = tl.full((), -1, tl.int32)
            place = drawn(
                short, count, largest, temperature, top_k, top_p, floor, uniform, rest, nothing, STEP, TOP
            )  # fmt: skip
            chosen = tl.load(places + place, mask=place >= 0, other=chosen)
        else:
            chosen = drawn(row_ptr, size, largest, temperature, top_k, top_p, floor, uniform, 0.0, chosen, STEP, TOP)
    tl.store(out_ptr + row, chosen.to(tl.int64))


def draw(logits: Tensor, settings: Tensor, step: int = STEP, short: int = SHORT) -> Tensor:
    """logits [B, V], settings F64 [B, 5] -> I64 [B]."""
    rows = logits if logits.stride(-1) == 1 else logits.contiguous()
    out = torch.empty(len(rows), device=logits.device, dtype=torch.int64)
    if len(rows):
        values = torch.empty(len(rows), short, device=logits.device)
        places = torch.empty(len(rows), short, device=logits.device, dtype=torch.int32)
        draw_rows[(len(rows),)](
            rows, settings, values, places, out, rows.stride(0), rows.shape[1], STEP=step, TOP=ONE + 1, SHORT=short,
            FAINT=FAINT, COLDEST=COLDEST, num_warps=8,
        )  # fmt: skip
    return out
