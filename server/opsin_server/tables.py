"""What `opsin plugins` and `opsin doctor` print."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from opsin_plugins.loading.registry import Registry

# In a process of its own: this one stays free of torch, and a broken installation becomes a row.
PROBE = """
import json, sys
found = {}
def row(name, look):
    try:
        found[name] = look()
    except Exception as error:
        found[name] = "failed: " + type(error).__name__ + ": " + str(error)
def torch_version():
    import torch
    return torch.__version__ + ", " + str(torch.get_num_threads()) + " thread(s) by default"
def triton_version():
    import triton
    return triton.__version__
def device():
    import torch
    if not torch.cuda.is_available():
        return "cpu (torch sees no CUDA device)"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
def kernels():
    import torch
    from opsin_kernels.dispatch import implementation
    return implementation("cuda" if torch.cuda.is_available() else "cpu")
def memory():
    import torch
    from opsin_server.engine.startup.memory_plan import free_bytes
    return f"{free_bytes(torch.device('cpu')) / 2**30:.1f} GiB free for this process"
for name, look in (("torch", torch_version), ("triton", triton_version), ("device", device), ("kernels", kernels),
                   ("memory", memory)):
    row(name, look)
print(json.dumps(found))
"""
OPTIONAL = {"triton"}  # not there outside of Linux, and not needed by the torch definitions


def plugin_table(allow: Iterable[str] | None) -> tuple[Table, bool]:
    """The table, and whether all plugins load."""
    table = Table(title="plugins")
    for column in ("kind", "name", "distribution", "version", "status"):
        table.add_column(column)
    rows = Registry(allow).status()
    for row in rows:
        status = Text("ok", "green") if row.error is None else Text(row.error, "red")  # (its words are a stranger's)
        table.add_row(row.kind, row.name, row.distribution, row.version, status)
    return table, all(row.error is None for row in rows)


def doctor_table() -> tuple[Table, bool]:
    """The table, and whether everything that a server needs is there."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)  # noqa: S603
    lines = done.stdout.strip().splitlines()
    found: dict[str, str] = json.loads(lines[-1]) if lines else {"torch": f"failed: {done.stderr.strip()[-200:]}"}
    table = Table(title="doctor", show_header=False)
    table.add_row("Python", f"{platform.python_version()} at {sys.executable}")
    healthy = True
    for name, value in found.items():
        failed = value.startswith("failed")
        healthy = healthy and not (failed and name not in OPTIONAL)
        table.add_row(name, Text(value, "red" if failed else ""))
    return table, healthy
