"""The unquantized model in memory, to be run and changed a weight at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from opsin_client.migrate.progress import Bars
from opsin_plugins.blocks.checkpoint import Checkpoint
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.open_model import OpenModel
from opsin_server.engine.startup.device import free_bytes
from opsin_server.errors import ConfigError

BESIDE = 2**30  # bytes, for all that is computed beside the weights
TYPES = (torch.float32, torch.bfloat16)  # the first that fits; 16-bit products are slower and less exact on a CPU


@dataclass(frozen=True)
class Loaded:
    """base: what its weights are read from."""

    model: Model
    base: Checkpoint


@contextmanager
def loaded(opened: OpenModel, bars: Bars) -> Iterator[Loaded]:
    """On the CPU. Raises ConfigError where there is too little memory."""
    model = build_model(opened.spec, opened.registry, dtype=_type_that_fits(opened))
    with Checkpoint(model, opened.architecture.weights(opened.spec), opened.files) as base:
        for name in bars.over("loading", base.in_order(), len(base.plan)):
            base.fill(name)
        yield Loaded(model, base)


def _type_that_fits(opened: OpenModel) -> torch.dtype:
    numbers = sum(math.prod(info.shape) for info in opened.files.tensors.values())
    free = free_bytes(torch.device("cpu"))
    for dtype in TYPES:
        if numbers * dtype.itemsize + BESIDE <= free:
            return dtype
    needed = numbers * TYPES[-1].itemsize + BESIDE
    raise ConfigError(f"running the unquantized model takes {needed:,} bytes of memory, and {free:,} are free")
