"""Triton's own launching, up to the launch, for a chip that is not here: kernels are specialised for the arguments they
are called with, compiled, and checked against the chip's shared memory. Nothing runs: results are zeros."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import max_shared_mem
from triton.runtime.driver import driver

# Bytes that a program may have: A100; 30xx; 40xx, L4; H100; B200; 50xx.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
RESULTS = ("out_ptr", "sum_ptr", "x_grad_ptr", "loss_ptr", "hit_ptr")  # what the kernels here write


@dataclass(frozen=True)
class Binary:
    """A kernel as the chip would load it. shared: bytes."""

    name: str
    cubin: bytes
    shared: int


@dataclass
class Absent:
    """Names of kernels as they were launched; what was specialised, in words; and what would have been loaded."""

    launched: list[str] = field(default_factory=list)
    specialised: list[str] = field(default_factory=list)
    loaded: list[Binary] = field(default_factory=list)

    def launcher(self, source: Any, metadata: Any) -> Any:
        """In place of what hands a compiled kernel to the driver."""
        names = source.fn.arg_names

        def launch(*args: Any) -> None:
            self.launched.append(source.fn.fn.__name__)
            values = dict(zip(names, args[-len(names) :], strict=True))
            for name in RESULTS:
                if isinstance(values.get(name), Tensor):
                    values[name].zero_()

        return launch

    def load(self, name: str, cubin: bytes, shared: int, device: object) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, and threads that a program may have: what nobody here looks at."""
        self.loaded.append(Binary(name, cubin, shared))
        return 1, 1, 0, 0, 1024


@contextmanager
def absent(chip: int) -> Iterator[Absent]:
    """Within it kernels are launched on a chip such as 90, with tensors of any device, meta too. Raises Triton's own
    errors for a kernel that does not compile or fit."""
    found = Absent()
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED[chip]},
        load_binary=found.load,
        unload_module=lambda module: None,
    )
    device = object()  # compiled kernels are kept by device: a new one has none
    stand_in = SimpleNamespace(
        utils=utils,
        get_current_device=lambda: device,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", chip, 32),
        launcher_cls=found.launcher,
    )
    before, hook = driver._active, knobs.runtime.jit_post_compile_hook
    driver.set_active(stand_in)
    knobs.runtime.jit_post_compile_hook = lambda **what: found.specialised.append(what["repr"])
    try:
        yield found
    finally:
        driver.set_active(before)
        knobs.runtime.jit_post_compile_hook = hook
        max_shared_mem.cache_clear()
