"""Triton's own launching, up to the launch: kernels are specialised, compiled and checked for a chip that is not here.

What a GPU would do is left out: results are zeros. So what is proved is that every launch that the code makes, with its
arguments as they are, compiles and fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import max_shared_mem
from triton.runtime.driver import driver

from opsin_kernels import dispatch
from opsin_kernels.gpu.compiled import SHARED

RESULTS = ("out_ptr", "sum_ptr", "x_grad_ptr")


@dataclass
class Gpu:
    """Names of kernels as they were launched; what was compiled, with its specialisation in words."""

    launched: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)


class Launcher:
    """In place of what hands a compiled kernel to the driver."""

    gpu: Gpu

    def __init__(self, source, metadata) -> None:
        self.name, self.names = source.fn.fn.__name__, source.fn.arg_names

    def __call__(self, *args) -> None:
        values = dict(zip(self.names, args[-len(self.names) :], strict=True))
        self.gpu.launched.append(self.name)
        for name in RESULTS:
            if isinstance(values.get(name), torch.Tensor):
                values[name].zero_()


@contextmanager
def pretended(chip: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Within it tensors of the CPU are taken for the chip's."""
    gpu = Gpu()
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED[chip]},
        load_binary=lambda *args: (1, 1, 0, 0, 1024),  # module, function, registers, spills, threads at most
        unload_module=lambda module: None,
    )
    device = object()  # compiled kernels are kept by device: a new one has none
    stand_in = SimpleNamespace(
        utils=utils,
        get_current_device=lambda: device,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", chip, 32),
        launcher_cls=type("Launcher", (Launcher,), {"gpu": gpu}),
    )
    with monkeypatch.context() as patch:
        patch.setattr(type(driver), "active", property(lambda self: stand_in))
        patch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **what: gpu.compiled.append(what["repr"]))
        patch.setattr(dispatch, "INTERPRETED", True)
        max_shared_mem.cache_clear()
        yield gpu
    max_shared_mem.cache_clear()
