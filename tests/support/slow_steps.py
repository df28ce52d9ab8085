"""An engine whose answers take a while on the fastest machine too, for tests of what happens while they go on."""

from __future__ import annotations

import os
from pathlib import Path

SLOW_STEPS = """
import sys

if "opsin_server.engine.worker" in sys.orig_argv:
    import time

    from opsin_server.engine.engine import Engine

    step = Engine.step

    def slow(self):
        time.sleep(0.01)
        return step(self)

    Engine.step = slow
"""


def slow_steps(folder: Path) -> dict[str, str]:
    """The environment of a server that has one. folder: for what its Python runs first."""
    (folder / "sitecustomize.py").write_text(SLOW_STEPS)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
