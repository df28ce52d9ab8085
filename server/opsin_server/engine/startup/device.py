"""Where the engine runs, in which type, and how much memory is free there."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from opsin_kernels.cpu.native import native
from opsin_kernels.dispatch import forced, implementation
from opsin_plugins.spec import ModelFiles
from opsin_server.errors import ConfigError

log = logging.getLogger("opsin.engine")
CGROUP = Path("/sys/fs/cgroup")
FP8 = (8, 9)  # compute capability
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """name: as in `EngineConfig.device`. A CUDA device has its index. Raises ConfigError for one that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no CUDA device")
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"--device {name}: torch sees {count} CUDA device{'s' * (count > 1)}, counted from cuda:0")
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device, files: ModelFiles) -> torch.dtype:
    """auto: 16 bit as stored on a GPU; float32 on a CPU, where products of 16 bits are less exact and no faster: there
    weights stay in the 16 bits that they have (`multiplies_halves`)."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    stored = {info.dtype for info in files.tensors.values()}
    return torch.float16 if stored == {"F16"} else torch.bfloat16


def multiplies_halves(device: torch.device) -> bool:
    """Whether products with a weight in 16 bits are made with rows in float32, and no copy of it in float32."""
    return device.type == "cpu" and not isinstance(native(), str)


def computes_fp8(device: torch.device) -> bool:
    """Whether it has float8 (e4m3): every CPU, by the definitions, and GPUs of that compute capability. One that is not
    here (`opsin check --gpu`) is taken for such a GPU."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= FP8


def kernels_on(device: torch.device) -> str:
    """Which run there, for the operator."""
    chosen = implementation(device.type)
    if chosen != "torch" or device.type != "cpu":
        return chosen
    found = native()
    return f"torch, no C ({found})" if isinstance(found, str) else f"C for {torch.backends.cpu.get_cpu_capability()}"


def warn_without_c(device: torch.device) -> None:
    """Where nobody has asked for that."""
    if device.type == "cpu" and forced() is None and isinstance(found := native(), str):
        log.warning("no C kernels: %s. Quantized weights are slow, and weights of 16 bits take 32", found)


def free_bytes(device: torch.device) -> int:
    """Memory that could be allocated now: the device's own, or the machine's within this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_meminfo("MemAvailable"), _cgroup_left())


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ConfigError(f"/proc/meminfo has no {field}")


def _cgroup_left() -> int:
    """A container's limit less what it uses. Kubernetes sets one far below the machine's memory."""
    for limit, used, stat, idle in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            maximum, current = ((CGROUP / name).read_text().strip() for name in (limit, used))
        except OSError:
            continue
        if maximum.isdigit():
            return max(0, int(maximum) - int(current) + _counted(CGROUP / stat, idle))
    return 2**63


def _counted(stat: Path, name: str) -> int:
    """Of what is used, files that were read and not needed since: they go as soon as anybody wants the memory, and a
    container that has just fetched its weights is full of them."""
    try:
        lines = dict(line.split() for line in stat.read_text().splitlines())
        return int(lines.get(name, "0"))
    except (OSError, ValueError):
        return 0
