"""How a weight is written in fewer bits, and what the configuration says of it: compressed-tensors' schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from opsin_kernels import fp8_linear, int8_linear
from opsin_kernels.int4_linear import GROUPS
from opsin_server.quantize.fit import MIDDLE, fit_groups

SchemeName = Literal["int4", "int8", "fp8"]


class Written(NamedTuple):
    """tensors: by what stands behind the module's name. meant: the numbers that they stand for, F32 [N, K]."""

    tensors: dict[str, Tensor]
    meant: Tensor


@dataclass(frozen=True)
class Scheme:
    """form: of compressed-tensors. write: a weight [N, K], by groups of so many inputs."""

    form: str
    weights: Mapping[str, Any]
    write: Callable[[Tensor, int], Written]
    groups: tuple[int, ...] = ()  # sizes that there are; none: a row is one

    def group(self, inputs: list[int]) -> int:
        """The largest that divides most: 0 where a row is one."""
        if not self.groups:
            return 0
        return max(self.groups, key=lambda size: (sum(count % size == 0 for count in inputs), size))

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


def _words(codes: Tensor) -> Tensor:
    """Codes of four bits, [R, C] -> I32 [R, C / 8], the first in the lowest bits."""
    eight = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8)).to(torch.int64).unflatten(1, (-1, 8))
    words = (eight << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _int4(weight: Tensor, group: int) -> Written:
    codes, scale = fit_groups(weight.float(), group, weight.dtype)
    tensors = {"weight_packed": _words(codes), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    meant = (codes.float() - MIDDLE).unflatten(1, (-1, group)) * scale[..., None].float()
    return Written(tensors, meant.flatten(1))


def _int8(weight: Tensor, group: int) -> Written:
    codes, scale = int8_linear.quantize_rows(weight)
    scale = scale.to(weight.dtype)
    return Written({"weight": codes, "weight_scale": scale}, codes.float() * scale.float())


def _fp8(weight: Tensor, group: int) -> Written:
    codes, scale = fp8_linear.quantize_rows(weight)
    scale = scale.to(weight.dtype)
    return Written({"weight": codes, "weight_scale": scale}, codes.float() * scale.float())


SCHEMES: Mapping[SchemeName, Scheme] = {
    "int4": Scheme(
        "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}, _int4, GROUPS
    ),
    "int8": Scheme("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, _int8),
    "fp8": Scheme("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}, _fp8),
}
