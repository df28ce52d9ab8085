"""Which weights are multiplied with activations of 8 bits: what the operator wants, and what the device can."""

from __future__ import annotations

from collections.abc import Set

import torch

from opsin_kernels.kv_rows import KINDS
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.device import computes_fp8
from opsin_server.errors import ConfigError


def activation_policy(config: EngineConfig, device: torch.device, codes: Set[str]) -> ActivationPolicy:
    """codes: that weights are stored in. On a CPU "auto" leaves activations as they are: its C is as fast so, and more
    exact. Raises ConfigError where they are wanted in 8 bits and no weight can meet them."""
    wanted = config.quantize_activations
    if wanted == "never" or (wanted == "auto" and device.type == "cpu"):
        return ActivationPolicy()
    kinds = frozenset(kind for kind in KINDS if kind != "fp8" or computes_fp8(device))
    if wanted == "always" and not codes & KINDS.keys():
        raise ConfigError("--quantize-activations always needs weights of 8 bits: int8 or fp8")
    if wanted == "always" and not codes & kinds:
        raise ConfigError(
            "--quantize-activations always: fp8 needs a GPU of compute capability 8.9 or more; int8 does with any"
        )
    return ActivationPolicy(kinds, wanted == "always")
