"""Kernels compiled for a chip that is not here, and what can be said of the result: no GPU needed.

The facts are those that decide on speed and that a compiler can get wrong: registers spilled to memory, shared memory
over the chip's limit, tensor cores not used, loads not made in the background.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CHIPS = (80, 86, 89, 90, 100, 120)  # A100; 30xx; 40xx, L4; H100; B200; 50xx
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # bytes a program may have
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA")
SPILLS = ("LDL", "STL")
TOLERATED_STACK, TOLERATED_SPILLS = 16, 4  # bytes, instructions; Triton 3.9 adds 8 to 16 bytes where 3.6 has none


@dataclass(frozen=True)
class Launch:
    """A kernel as one launch specialises it. types: of its arguments ("*bf16", "i32", "fp32"); aligned: those that are
    multiples of 16, which is what makes loads wide."""

    name: str
    kernel: triton.JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, object]
    aligned: tuple[str, ...]
    warps: int
    stages: int = 1
    matrix: bool = False  # whether it multiplies matrices, with tensor cores and loads in the background


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
    """Raises triton's own error when it does not compile."""
    names = launch.kernel.arg_names
    signature = {n: launch.types.get(n, "constexpr") for n in names}
    constants = {(names.index(n),): value for n, value in launch.constants.items()}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in launch.aligned}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (_dump(flag, file.name) for flag in ("--dump-resource-usage", "--dump-sass"))
    counted = (*TENSOR_CORES, "LDGSTS", *SPILLS)
    return Facts(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        stack=int(re.findall(r"STACK:(\d+)", usage)[-1]),
        shared=compiled.metadata.shared,
        instructions={name: len(re.findall(rf"\b{name}\b", code)) for name in counted},
    )


def _dump(flag: str, file: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, file], capture_output=True, text=True, check=True).stdout  # noqa: S603
