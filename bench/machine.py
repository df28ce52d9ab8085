"""What the numbers were measured on, and who used its processor meanwhile. No host name, no path."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """Processor time of this process and of the whole machine since the meter was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _own_cpu_seconds(), machine_cpu_seconds()

    def read(self) -> dict[str, float]:
        now = time.perf_counter(), _own_cpu_seconds(), machine_cpu_seconds()
        names = ("wall_seconds", "cpu_seconds", "machine_cpu_seconds")
        return {name: b - a for name, a, b in zip(names, self._start, now, strict=True)}


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def machine_cpu_seconds() -> float:
    """Processor time that anybody has used on this machine, and that a hypervisor has taken away (steal)."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    used = dict(zip(names, values, strict=True))
    return sum(v for k, v in used.items() if k not in ("idle", "iowait")) / TICKS


def tree_cpu_seconds(root: int) -> dict[int, float]:
    """Processor time so far of a process and of all that descend from it, whatever groups they are in."""
    used, children = {}, defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            children[int(fields[1])].append(int(folder.name))
            used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    out, left = {}, [root]
    while left:
        pid = left.pop()
        left += children[pid]
        if pid in used:
            out[pid] = used[pid]
    return out


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def kind() -> str:
    return f"cpu-{cores()}core"


def describe() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    found = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return {
        "kind": kind(),
        "cpu": found[0] if found else platform.machine(),
        "cores": cores(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("opsin", "torch", "transformers", "uvicorn"):
        with contextlib.suppress(PackageNotFoundError):
            out[name] = version(name)
    return out
