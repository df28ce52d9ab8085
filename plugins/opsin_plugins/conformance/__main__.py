"""python -m opsin_plugins.conformance [NAME ...]: checks these architectures, or all that are installed."""

from __future__ import annotations

import errno
import io
import os
import sys

import torch

from opsin_plugins.conformance.kit import installed, run
from opsin_plugins.loading.registry import Registry

if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a plugin's name and words may be no ASCII
    torch.set_num_threads(1)  # tiny models are slower with more
    registry = Registry()
    try:
        passed = run(sys.argv[1:] or installed(registry), registry)
        sys.stdout.flush()
        os._exit(0 if passed else 1)  # at once: Python would take torch apart, which is 0.6 s of work [measured]
    except OSError as error:  # nobody reads what is printed, or there is no room for it
        if error.errno != errno.EPIPE:
            sys.stderr.write(f"opsin: {error.filename or 'standard output'}: {error.strerror}\n")
        os._exit(1)  # not sys.exit, which would try to print the rest
