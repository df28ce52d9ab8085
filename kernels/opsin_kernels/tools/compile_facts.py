"""What can be said of kernels compiled for a chip that is not here: no GPU needed.

The facts are those that decide on speed and that a compiler can get wrong: registers spilled to memory, shared memory
over the chip's limit, tensor cores not used, loads not made in the background.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

from opsin_kernels.tools.stand_in_driver import SHARED, Binary, absent

CHIPS = tuple(SHARED)
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "IGMMA", "UTCIMMA", "QMMA", "QGMMA", "UTCQMMA")
SPILLS = ("LDL", "STL")
TOLERATED_STACK, TOLERATED_SPILLS = 16, 4  # bytes, instructions; Triton 3.9 adds 8 to 16 bytes where 3.6 has none


@dataclass(frozen=True)
class Launch:
    """A kernel as the code launches it. run: does so with meta tensors; kernel: which one, should `run` launch several;
    matrix: whether it multiplies matrices, with tensor cores; background: whether it loads what a loop needs next;
    chips: that it is launched on."""

    name: str
    kernel: str
    run: Callable[[], object]
    matrix: bool = False
    background: bool = False
    chips: Sequence[int] = CHIPS


@dataclass(frozen=True)
class Facts:
    registers: int
    stack: int
    shared: int
    instructions: Mapping[str, int]  # tensor cores, background loads, spills

    @property
    def spilled(self) -> bool:
        return self.stack > TOLERATED_STACK or sum(self.instructions[name] for name in SPILLS) > TOLERATED_SPILLS

    @property
    def tensor_cores(self) -> str:
        return " ".join(f"{n} {self.instructions[n]}" for n in TENSOR_CORES if self.instructions[n]) or "-"


def facts(launch: Launch, chip: int) -> Facts:
    """Raises Triton's own error when it does not compile or fit."""
    with absent(chip) as gpu:
        launch.run()
    (binary,) = (b for b in gpu.loaded if b.name == launch.kernel)
    return _read(binary)


def _read(binary: Binary) -> Facts:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.cubin)
        file.flush()
        usage, code = (_dump(flag, file.name) for flag in ("--dump-resource-usage", "--dump-sass"))
    return Facts(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        stack=int(re.findall(r"STACK:(\d+)", usage)[-1]),
        shared=binary.shared,
        instructions={n: len(re.findall(rf"\b{n}\b", code)) for n in (*TENSOR_CORES, "LDGSTS", *SPILLS)},
    )


def _dump(flag: str, file: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, file], capture_output=True, text=True, check=True).stdout  # noqa: S603
