"""A server that a test starts does not outlive the test's process, however that ends."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def with_parent() -> None:
    """For subprocess' preexec_fn: the child is told to end (SIGQUIT) when its parent is gone. On Linux only."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
