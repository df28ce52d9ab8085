"""Where something is timed: on a GPU in bf16, or on a CPU in float32, which shows that a script works."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS, SAMPLES = 64, 20
SAMPLE_MS = 20.0
WORD = 2**20  # numbers of one random tile: large tensors are filled with copies of it


class Device:
    """tiny: small sizes and few samples."""

    def __init__(self, tiny: bool) -> None:
        self.cuda = torch.cuda.is_available()
        self.tiny, self.device = tiny, torch.device("cuda" if self.cuda else "cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    @property
    def name(self) -> str:
        if not self.cuda:
            return "cpu"
        return torch.cuda.get_device_name().lower().replace(" ", "-")

    def describe(self) -> dict[str, Any]:
        """What the numbers were measured on, for the report."""
        import triton

        found: dict[str, Any] = {"name": self.name, "torch": torch.__version__, "triton": triton.__version__}
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            found |= {
                "cuda": torch.version.cuda,
                "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
                "processors": properties.multi_processor_count,
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        return found

    def broken(self) -> bool:
        """Whether an earlier fault has made the device useless to this process."""
        if not self.cuda:
            return False
        try:
            torch.cuda.synchronize()
        except Exception:  # whatever it says: an illegal access, a launch that failed
            return True
        return False

    def clear(self) -> None:
        """Gives memory that nothing holds any more back to the device."""
        if self.cuda:
            torch.cuda.empty_cache()

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def numbers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def time(
        self,
        run: Callable[[int], object],
        sets: int,
        captured: bool = True,
        samples: int = SAMPLES,
        sample_ms: float = SAMPLE_MS,
    ) -> tuple[float, float]:
        """Median and half the middle range of one call, ms. run gets the number of the input set.

        On a GPU a sample is several calls captured as one CUDA graph, so that the host's part in a launch, longer than
        a small kernel, does not count. captured False: for what asks the host; several calls are queued instead.
        """
        if not self.cuda:
            return _spread([_clocked(run, i % sets) for i in range(3 if self.tiny else 40)])
        for i in range(min(sets, 3)):
            run(i)  # compiles
        took = self._elapsed(lambda: run(0))
        calls = max(1, min(CALLS, int(sample_ms / max(took, 0.01))))

        def several() -> None:
            for i in range(calls):
                run(i % sets)

        repeat = self.captured(several) if captured else several
        repeat()
        return _spread([self._elapsed(repeat) / calls for _ in range(samples)])

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """Records a CUDA graph; returns what replays it. Elsewhere: what runs it again."""
        if not self.cuda:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # libraries set up their workspace for this stream outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        replay: Callable[[], object] = graph.replay
        return replay

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _elapsed(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def copy_rate(self) -> float:
        """Bytes a second of a large copy, read and written, as this device does them today."""
        n = 2**10 if self.tiny else 2**30
        a = self.random(min(n, WORD)).repeat(max(1, n // WORD))  # zeros may be faster than numbers
        b = torch.empty_like(a)
        copied, _ = self.time(lambda i: b.copy_(a), 1)
        return 2 * a.nbytes / copied * 1e3

    def product_rate(self) -> float:
        """Operations a second of a large product."""
        size = 64 if self.tiny else 8192
        x, y = self.random(size, size), self.random(size, size)
        multiplied, _ = self.time(lambda i: x @ y, 1)
        return 2 * size**3 / multiplied * 1e3

    def ceilings(self) -> tuple[float, float]:
        return self.copy_rate(), self.product_rate()


def _clocked(run: Callable[[int], object], i: int) -> float:
    began = time.perf_counter()
    run(i)
    return 1e3 * (time.perf_counter() - began)


def _spread(samples: list[float]) -> tuple[float, float]:
    quarters = statistics.quantiles(samples, n=4)
    return quarters[1], (quarters[2] - quarters[0]) / 2
