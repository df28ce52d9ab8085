"""Numbers of the host on a device. The host does not wait for what the device is still computing."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """values: what `torch.tensor` takes."""
    return moved(torch.tensor(values, dtype=dtype), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, through pinned memory: from any other a copy waits for all that was launched
    before it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
