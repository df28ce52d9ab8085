"""python -m opsin_plugins.conformance [NAME ...]: checks these architectures, or all that are installed."""

from __future__ import annotations

import sys

import torch

from opsin_plugins.conformance.kit import installed, run
from opsin_plugins.loading.registry import Registry

if __name__ == "__main__":
    torch.set_num_threads(1)  # tiny models are slower with more
    registry = Registry()
    sys.exit(0 if run(sys.argv[1:] or installed(registry), registry) else 1)
