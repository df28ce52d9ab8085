"""From stored tensors to the weights of the model, as quantization_config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opsin_plugins.loading.quantized.bitsandbytes import read_bitsandbytes
from opsin_plugins.loading.quantized.compressed_tensors import read_compressed_tensors
from opsin_plugins.loading.quantized.fp8 import read_fp8
from opsin_plugins.loading.quantized.gptq import read_awq, read_gptq
from opsin_plugins.loading.quantized.parts import Parts
from opsin_plugins.loading.quantized.torchao import read_torchao
from opsin_plugins.spec import SpecError, TensorInfo

READERS: Mapping[str, Callable[[Mapping[str, Any], Parts], dict[str, TensorInfo]]] = {
    "awq": read_awq,
    "bitsandbytes": read_bitsandbytes,
    "compressed-tensors": read_compressed_tensors,
    "fbgemm_fp8": read_fp8,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "torchao": read_torchao,
}
PLACES = ("quantization_config", "compression_config", "quantization")


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """At the top, or in text_config. None: nothing is quantized."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, Mapping) else {}):
        for name in PLACES:
            if (found := source.get(name)) is not None:
                if not isinstance(found, Mapping):
                    raise SpecError(f"{name} is {found!r:.80}, which is no object")
                return found
    return None


def weights_of(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The model's weights, by their published names; what is not packed is as it is. Raises SpecError for a scheme that
    is not read, with those that are, and for parts that are missing or do not fit each other."""
    quantization = quantization_of(config)
    if quantization is None:
        return tensors
    method = scheme_of(quantization)
    if method not in READERS:
        raise SpecError(
            f"the weights are quantized as {method!r:.60}, which is not read; there are {', '.join(READERS)} and GGUF "
            "files. Serve the unquantized checkpoint, with --quantization if it is too large"
        )
    parts = Parts(tensors)
    try:
        packed = READERS[method](quantization, parts)
    except SpecError as error:
        raise SpecError(f"the weights are quantized as {method!r}: {error}") from error
    return {**parts.left(), **packed}


def scheme_of(quantization: Mapping[str, Any]) -> str:
    for name in ("quant_method", "quant_algo"):
        if isinstance(found := quantization.get(name), str):
            return found
    return "compressed-tensors" if "config_groups" in quantization else "unnamed"
