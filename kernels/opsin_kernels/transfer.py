"""Numbers of the host on a device."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Through pinned memory: the host does not wait for what the device is still computing."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)
