"""Where a kernel is timed: on a GPU in bf16, or under the interpreter in float32, which shows that a script works."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

CALLS, SAMPLES = 64, 20


class Device:
    """tiny: small sizes and few samples."""

    def __init__(self, tiny: bool) -> None:
        self.cuda = torch.cuda.is_available()
        self.tiny, self.device = tiny, torch.device("cuda" if self.cuda else "cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name().lower().replace(" ", "-") if self.cuda else "interpreter"

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def numbers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def time(self, run: Callable[[int], object], sets: int, recorded: bool = True) -> tuple[float, float]:
        """Median and half the middle range of one call, ms. run gets the number of the input set.

        On a GPU a sample is several calls recorded as one CUDA graph, so that the host's part in a launch, longer than
        a small kernel, does not count. recorded False: for what asks the host; several calls are queued instead.
        """
        if not self.cuda:
            return _spread([_clocked(run, i % sets) for i in range(3 if self.tiny else 40)])
        for i in range(min(sets, 3)):
            run(i)  # compiles
        took = self._elapsed(lambda: run(0))
        calls = max(1, min(CALLS, int(20 / max(took, 0.01))))  # about 20 ms a sample

        def several() -> None:
            for i in range(calls):
                run(i % sets)

        repeat = _recorded(several) if recorded else several
        repeat()
        return _spread([self._elapsed(repeat) / calls for _ in range(SAMPLES)])

    @staticmethod
    def _elapsed(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def ceilings(self) -> tuple[float, float]:
        """Bytes a second of a copy, and operations a second of a large product, as this device does them today."""
        n = 2**10 if self.tiny else 2**29
        a, b = (torch.empty(n, device=self.device, dtype=self.dtype) for _ in range(2))
        copied, _ = self.time(lambda i: b.copy_(a), 1)
        size = 64 if self.tiny else 8192
        x, y = self.random(size, size), self.random(size, size)
        multiplied, _ = self.time(lambda i: x @ y, 1)
        return 2 * a.nbytes / copied * 1e3, 2 * size**3 / multiplied * 1e3


def _recorded(run: Callable[[], object]) -> Callable[[], object]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _clocked(run: Callable[[int], object], i: int) -> float:
    began = time.perf_counter()
    run(i)
    return 1e3 * (time.perf_counter() - began)


def _spread(samples: list[float]) -> tuple[float, float]:
    quarters = statistics.quantiles(samples, n=4)
    return quarters[1], (quarters[2] - quarters[0]) / 2
