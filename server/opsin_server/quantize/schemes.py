"""How a weight is written in fewer bits, and what the configuration says of it: compressed-tensors' schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from opsin_kernels import fp8_linear, int8_linear
from opsin_kernels.int4_linear import GROUPS
from opsin_server.quantize.compensate import compensated, output_errors
from opsin_server.quantize.fit import MIDDLE, fit_groups, nearest_levels

SchemeName = Literal["int4", "int8", "fp8"]


class Rounded(NamedTuple):
    """tensors: by what stands behind the module's name. error: of the numbers, relative to their size."""

    tensors: dict[str, Tensor]
    error: float


class Seen(NamedTuple):
    """What data say of a weight's inputs. moments F32 [K, K]; factor: their `compensation`, of the inputs in the order
    I64 [K]."""

    moments: Tensor
    factor: Tensor
    order: Tensor


@dataclass(frozen=True)
class Scheme:
    """form: of compressed-tensors. fit: a weight F32 [N, K] in groups of so many inputs -> scale F32 [N, K / group];
    with how much each input counts [K], where data say so. levels: numbers in units of their scale -> the nearest that
    there are, F32. pack: levels [N, K] -> the stored tensor."""

    form: str
    weights: Mapping[str, Any]
    fit: Callable[[Tensor, int, torch.dtype, Tensor | None], Tensor]
    levels: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], dict[str, Tensor]]
    groups: tuple[int, ...] = ()  # sizes that there are; none: a row is one

    def group(self, inputs: list[int]) -> int:
        """The largest that divides most: 0 where a row is one."""
        if not self.groups:
            return 0
        return max(self.groups, key=lambda size: (sum(count % size == 0 for count in inputs), size))

    def write(self, weight: Tensor, group: int, seen: Seen | None = None) -> tuple[Rounded, Tensor]:
        """weight [N, K] of any float type, in which scales are stored -> what is stored, and the numbers that are meant
        F32 [N, K]. seen: None: nothing is known of its inputs. A row that is further off on the data where its errors
        are made up for than where they are not is rounded to nearest."""
        numbers, dtype = weight.float(), weight.dtype
        scale = self.fit(numbers, group, dtype, None).to(dtype).float()
        levels = self.levels(numbers / _spread(scale, numbers))
        if seen is not None:
            levels, scale = self._compensated(numbers, group, dtype, seen, (levels, scale))
        meant = levels * _spread(scale, levels)
        error = float((meant - numbers).norm() / numbers.norm().clamp(min=1e-12))
        return Rounded({**self.pack(levels), "weight_scale": scale.to(dtype)}, error), meant

    def _compensated(
        self, weight: Tensor, group: int, dtype: torch.dtype, seen: Seen, plain: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        scale = self.fit(weight, group, dtype, seen.moments.diagonal()).to(dtype).float()
        spread, back = _spread(scale, weight)[:, seen.order], seen.order.argsort()

        def nearest(column: Tensor, j: int) -> Tensor:
            return self.levels(column / spread[:, j]) * spread[:, j]

        meant = compensated(weight[:, seen.order], seen.factor, nearest)
        levels = self.levels(meant / spread)[:, back]
        before = output_errors(plain[0] * _spread(plain[1], weight) - weight, seen.moments)
        better = (output_errors(levels * _spread(scale, weight) - weight, seen.moments) < before)[:, None]
        return torch.where(better, levels, plain[0]), torch.where(better, scale, plain[1])

    def config(self, group: int, ignored: list[str]) -> dict[str, Any]:
        """quantization_config."""
        weights = {"dynamic": False, **self.weights, **({"group_size": group} if group else {})}
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": self.form,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": ignored,
            "config_groups": {"group_0": {**scheme, "format": self.form}},
        }


def _spread(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales [N, G] -> of each number [N, K]."""
    return scale.repeat_interleave(weight.shape[1] // scale.shape[1], 1)


def _words(codes: Tensor) -> Tensor:
    """Codes of four bits, [R, C] -> I32 [R, C / 8], the first in the lowest bits."""
    eight = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8)).to(torch.int64).unflatten(1, (-1, 8))
    words = (eight << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _pack_int4(levels: Tensor) -> dict[str, Tensor]:
    codes = (levels + MIDDLE).to(torch.uint8)
    return {"weight_packed": _words(codes), "weight_shape": torch.tensor(levels.shape)}


def _int8_levels(numbers: Tensor) -> Tensor:
    return numbers.round().clamp(-int8_linear.LARGEST, int8_linear.LARGEST)


def _fp8_levels(numbers: Tensor) -> Tensor:
    return numbers.clamp(-fp8_linear.LARGEST, fp8_linear.LARGEST).to(torch.float8_e4m3fn).float()


def _fit_rows(largest: float) -> Callable[[Tensor, int, torch.dtype, Tensor | None], Tensor]:
    """Of rows, whose whole range is kept."""

    def fit(weight: Tensor, group: int, dtype: torch.dtype, counts: Tensor | None) -> Tensor:
        return weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest

    return fit


SCHEMES: Mapping[SchemeName, Scheme] = {
    "int4": Scheme(
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True},
        fit_groups,
        nearest_levels,
        _pack_int4,
        GROUPS,
    ),
    "int8": Scheme(
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        _fit_rows(int8_linear.LARGEST),
        _int8_levels,
        lambda levels: {"weight": levels.to(torch.int8)},
    ),
    "fp8": Scheme(
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        _fit_rows(fp8_linear.LARGEST),
        _fp8_levels,
        lambda levels: {"weight": levels.to(torch.float8_e4m3fn)},
    ),
}
