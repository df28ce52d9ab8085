"""Every kernel on a GPU: right first, then timed, at the sizes of published models.

    python bench/kernels.py                 on a CUDA device; ends within 9 minutes
    python bench/kernels.py --tiny          small sizes; with OPSIN_KERNELS=interpret TRITON_INTERPRET=1 on a CPU, which
                                            shows that the script works

For each operation: its time, the bytes and operations it cannot do without, what fraction of the device's measured
ceiling that is, and how many times faster it is than the best that torch brings. Inputs rotate through more memory
than the last cache holds. Writes docs/benchmarks/kernels-<device>.json and .md (--tiny: build/benchmarks).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import report
import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels import activations, attention, layer_norm, norms, rotary, sampling

ROOT = Path(__file__).resolve().parent.parent
L2 = 128 * 2**20  # bytes that rotating inputs exceed
PAGE = 16
TOLERANCE = 2e-2  # of bf16 results, relative to the largest value
MINUTES = 8.5


@dataclass(frozen=True)
class Job:
    """One operation at one size. make: fresh inputs; run, define, library: the kernel, its definition, torch's best."""

    name: str
    make: Callable[[], tuple]
    run: Callable[..., Tensor]
    define: Callable[..., Tensor] | None
    library: Callable[..., Tensor] | None
    bytes: float
    flops: float = 0.0


@dataclass
class Row:
    name: str
    error: float
    milliseconds: float
    spread: float
    gigabytes_s: float
    teraflops: float
    of_ceiling: float
    library_ms: float | None


class Device:
    """Where it runs: bf16 on a GPU, float32 under the interpreter."""

    def __init__(self, tiny: bool) -> None:
        self.cuda = torch.cuda.is_available()
        self.tiny, self.device = tiny, torch.device("cuda" if self.cuda else "cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name().lower().replace(" ", "-") if self.cuda else "interpreter"

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def time(self, run: Callable[[int], object], sets: int) -> tuple[float, float]:
        """Median and half the middle range of one call, ms. run gets the number of the input set."""
        for i in range(2 if self.tiny else 5):
            run(i % sets)
        samples = []
        for i in range(3 if self.tiny else 40):
            if self.cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run(i % sets)
                end.record()
                end.synchronize()
                samples.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                run(i % sets)
                samples.append(1e3 * (time.perf_counter() - began))
        quarters = statistics.quantiles(samples, n=4)
        return quarters[1], (quarters[2] - quarters[0]) / 2

    def ceilings(self) -> tuple[float, float]:
        """Bytes a second of a copy, and operations a second of a large product, as this device does them today."""
        n = 2**10 if self.tiny else 2**29
        a, b = (torch.empty(n, device=self.device, dtype=self.dtype) for _ in range(2))
        copied, _ = self.time(lambda i: b.copy_(a), 1)
        size = 64 if self.tiny else 8192
        x, y = self.random(size, size), self.random(size, size)
        multiplied, _ = self.time(lambda i: x @ y, 1)
        return 2 * a.nbytes / copied * 1e3, 2 * size**3 / multiplied * 1e3


def decode(device: Device, model: str, heads: int, kv_heads: int, size: int, batch: int, context: int) -> Job:
    pages = -(-context // PAGE)

    def make() -> tuple:
        pool = device.random(batch * pages, PAGE, 2 * kv_heads, size)
        table = torch.randperm(batch * pages, device=device.device).view(batch, pages)
        layout = attention.Layout([1] * batch, [context] * batch, table)
        _ = layout.launches  # (made once a step, not once a layer)
        return device.random(batch, heads, size), pool, layout

    def library(q: Tensor, pool: Tensor, layout: attention.Layout) -> Tensor:
        """torch's own over keys that already lie in a row: what paging must not cost."""
        k, v = pool.view(batch, -1, 2 * kv_heads, size)[:, :context].transpose(1, 2).chunk(2, 1)
        grouped = q.view(batch, kv_heads, heads // kv_heads, size)
        return F.scaled_dot_product_attention(grouped, k, v).reshape(batch, -1)

    moved = batch * context * 2 * kv_heads * size * device.dtype.itemsize
    work = 4.0 * batch * context * heads * size
    name = f"decode {model} batch {batch} context {context}"
    return Job(name, make, attention.paged_attention, attention.paged_attention_ref, library, moved, work)


def packed(device: Device, model: str, heads: int, size: int, length: int) -> Job:
    def make() -> tuple:
        return tuple(device.random(length, heads, size) for _ in range(3))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.packed_attention(q, k, v, [length], causal=False)

    def library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.packed_attention_ref(q, k, v, [length], causal=False)

    moved = 4 * length * heads * size * device.dtype.itemsize
    return Job(f"vision {model} {length} patches", make, run, library, library, moved, 4.0 * length**2 * heads * size)


def norm(device: Device, rows: int, width: int) -> Job:
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        return device.random(rows, width), device.random(width), floor

    def library(x: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, 1e-6)

    moved = 2 * rows * width * device.dtype.itemsize
    return Job(f"rms_norm {rows} x {width}", make, norms.rms_norm, norms.rms_norm_ref, library, moved)


def tower_norm(device: Device, rows: int, width: int) -> Job:
    def make() -> tuple:
        return device.random(rows, width), device.random(width), device.random(width), 1e-6

    moved, run = 2 * rows * width * device.dtype.itemsize, layer_norm.layer_norm
    return Job(f"layer_norm {rows} x {width}", make, run, layer_norm.layer_norm_ref, layer_norm.layer_norm_ref, moved)


def gate(device: Device, rows: int, width: int) -> Job:
    run, define = (partial(f, activation="silu") for f in (activations.gated, activations.gated_ref))
    moved = 3 * rows * width * device.dtype.itemsize
    return Job(f"silu gated {rows} x {width}", lambda: (device.random(rows, 2 * width),), run, define, define, moved)


def turn(device: Device, rows: int, heads: int, kv_heads: int, size: int) -> Job:
    def make() -> tuple:
        tables = rotary.angles_to_tables(torch.rand(rows, size // 2, device=device.device), device.dtype)
        pool = device.random(rows // PAGE + 1, PAGE, 2 * kv_heads, size)
        slots = torch.randperm(pool.shape[0] * PAGE, device=device.device)[:rows]
        return device.random(rows, heads + 2 * kv_heads, size), heads, *tables, pool, slots

    moved = 2 * rows * (heads + 2 * kv_heads) * size * device.dtype.itemsize
    name = f"rotate and store {rows} rows {heads}+{kv_heads} heads"
    run, define = rotary.rotate_and_store, rotary.rotate_and_store_ref
    return Job(name, make, run, define, define, moved)


def norm_trained(device: Device, rows: int, width: int) -> Job:
    """The norm and its gradients, as a training step needs them."""
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        x, weight = device.random(rows, width).requires_grad_(), device.random(width).requires_grad_()
        return x, weight, device.random(rows, width)

    def both(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, grad: torch.autograd.grad(norm(x, weight, floor), (x, weight), grad)[0]

    library = both(lambda x, weight, floor: F.rms_norm(x, weight.shape, weight, 1e-6))
    moved = 5 * rows * width * device.dtype.itemsize
    name = f"rms_norm and gradients {rows} x {width}"
    return Job(name, make, both(norms.rms_norm), both(norms.rms_norm_ref), library, moved)


def gate_trained(device: Device, rows: int, width: int) -> Job:
    def make() -> tuple:
        return device.random(rows, 2 * width).requires_grad_(), device.random(rows, width)

    def both(gate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, grad: torch.autograd.grad(gate(x, "silu"), x, grad)[0]

    define, moved = both(activations.gated_ref), 8 * rows * width * device.dtype.itemsize
    return Job(f"silu gated and gradient {rows} x {width}", make, both(activations.gated), define, define, moved)


def drawing(device: Device, rows: int, vocabulary: int) -> Job:
    settings = [sampling.SamplingRow(0.7, 50 if i % 2 else 0, 0.9, 0.0, (i + 0.5) / rows) for i in range(rows)]

    def make() -> tuple:
        return (8 * device.random(rows, vocabulary),)  # few tokens have the mass, so that rounding moves no draw

    run, define = (partial(f, rows=settings) for f in (sampling.sample, sampling.sample_ref))
    moved = rows * vocabulary * device.dtype.itemsize
    return Job(f"draw {rows} of {vocabulary:,}", make, run, define, define, moved)


def jobs(device: Device) -> Iterator[Job]:
    if device.tiny:
        yield decode(device, "tiny", 6, 3, 32, 2, 40)
        yield packed(device, "tiny", 2, 80, 40)
        yield norm(device, 5, 48)
        yield tower_norm(device, 5, 48)
        yield gate(device, 5, 48)
        yield turn(device, 5, 4, 2, 16)
        yield norm_trained(device, 5, 48)
        yield gate_trained(device, 5, 48)
        yield drawing(device, 2, 300)
        return
    decoders = {"Qwen2-VL-2B": (12, 2, 128), "Qwen2-VL-7B": (28, 4, 128), "Llama-3.2-11B": (32, 8, 128)}
    for model, sizes in decoders.items():
        for batch, context in ((1, 1024), (1, 8192), (8, 2048), (32, 2048), (129, 1024), (256, 1024)):
            yield decode(device, model, *sizes, batch, context)
    for length in (1024, 5476):
        yield packed(device, "Qwen2-VL tower", 16, 80, length)
    yield packed(device, "CLIP-L tower", 16, 64, 577)
    for rows in (1, 32, 2048):
        yield norm(device, rows, 3584)
        yield gate(device, rows, 18944)
        yield turn(device, rows, 28, 4, 128)
    yield tower_norm(device, 5476, 1280)
    yield norm_trained(device, 2048, 3584)
    yield gate_trained(device, 2048, 18944)
    for rows in (1, 32, 256):
        yield drawing(device, rows, 151_936)


def measure(device: Device, job: Job, bandwidth: float, rate: float) -> Row:
    sets = [job.make()]
    while not device.tiny and sum(_bytes(s) for s in sets) < L2 and len(sets) < 64:
        sets.append(job.make())
    error = 0.0
    if job.define is not None:
        copies = [
            [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in sets[0]]
            for _ in range(2)
        ]
        ours, theirs = job.run(*copies[0]).float(), job.define(*copies[1]).float()
        error = float((ours - theirs.view(ours.shape)).abs().max() / theirs.abs().max())
        if not error <= TOLERANCE:
            sys.exit(f"{job.name}: differs from its definition by {error:.2g} of the largest value")
    took, spread = device.time(lambda i: job.run(*sets[i]), len(sets))
    library = None if job.library is None else device.time(lambda i: job.library(*sets[i]), len(sets))[0]
    floor = max(job.bytes / bandwidth, job.flops / rate) * 1e3
    return Row(job.name, error, took, spread, job.bytes / took / 1e6, job.flops / took / 1e9, floor / took, library)


def _bytes(inputs: tuple) -> int:
    return sum(x.nbytes for x in inputs if isinstance(x, Tensor))


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        against = "-" if row.library_ms is None else f"{row.library_ms / row.milliseconds:.2f}x"
        lines.append(
            [
                row.name,
                f"{row.milliseconds:.4f}",
                f"{row.spread:.4f}",
                f"{row.gigabytes_s:,.0f}",
                f"{row.teraflops:,.1f}",
                f"{100 * row.of_ceiling:.0f} %",
                against,
                f"{row.error:.1e}",
            ]
        )
    return report.table(["operation", "ms", "+-", "GB/s", "TFLOP/s", "of ceiling", "against torch", "error"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="a .json; the table goes beside it")
    given = parser.parse_args()
    device, end = Device(given.tiny), time.monotonic() + 60 * MINUTES
    if not device.cuda and not given.tiny:
        sys.exit("there is no CUDA device; --tiny shows under the interpreter that this script works")
    bandwidth, rate = device.ceilings()
    rows, left = [], []
    for job in jobs(device):
        if time.monotonic() > end:
            left.append(job.name)
            continue
        rows.append(measure(device, job, bandwidth, rate))
        print(f"{rows[-1].name}: {rows[-1].milliseconds:.4f} ms", file=sys.stderr, flush=True)
    document = {
        "what": "kernels",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.name,
        "torch": torch.__version__,
        "copy_bytes_s": bandwidth,
        "product_flops_s": rate,
        "left_out_for_time": left,
        "rows": [asdict(row) for row in rows],
    }
    folder = "build/benchmarks" if given.tiny else "docs/benchmarks"
    out = given.out or ROOT / folder / f"kernels-{device.name}.json"
    ceiling = f"Copy {bandwidth / 1e12:.2f} TB/s, product {rate / 1e12:.0f} TFLOP/s, torch {torch.__version__}."
    text = "\n\n".join([f"# Kernels: {device.name}", ceiling, table(rows)]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
