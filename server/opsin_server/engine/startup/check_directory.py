"""What `opsin check` finds: whether a checkpoint serves here, or on a GPU that need not be here, and trains beside."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.device import choose_device, free_bytes
from opsin_server.engine.startup.inspect_checkpoint import estimate, examine
from opsin_server.engine.startup.load_dual_encoder import plan_dual_encoder
from opsin_server.engine.startup.training_estimate import estimate_training
from opsin_server.ipc.memory_messages import Estimate

RESERVE = 0.5 * 2**30  # what CUDA's context and libraries take of a GPU


def check_directory(config: EngineConfig, gpu: int | None) -> Estimate:
    """gpu: bytes of a GPU that need not be here; None: this machine's device. Raises ConfigError or SpecError."""
    if gpu is None:
        device = choose_device(config.device)
        free = free_bytes(device)
    else:
        device, free = torch.device("cuda"), max(0, int(gpu - RESERVE))
    opened = open_served(Path(config.model), config.plugins, config.family_options(), config.tower_file())
    if isinstance(opened, OpenDualEncoder):
        return plan_dual_encoder(opened, config, device, free).said
    inspected = examine(opened, config, device)
    said, resolved = estimate(inspected, config, device, free)
    if resolved is None:
        return said
    return msgspec.structs.replace(said, training=estimate_training(inspected, resolved))
