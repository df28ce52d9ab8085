"""Every kernel on a GPU: right first, then timed, at the sizes of published models.

    python bench/kernels.py                 on a CUDA device; ends within 9 minutes
    python bench/kernels.py --tiny          small sizes; with OPSIN_KERNELS=interpret TRITON_INTERPRET=1 on a CPU, which
                                            shows that the script works

First every operation is compared with its definition. Then for each: its time, the bytes and operations it cannot do
without, what fraction of the device's measured ceiling that is, and how many times faster it is than the best of what
else is installed (torch, liger-kernel). Calls are recorded as CUDA graphs, and inputs rotate through more memory than
the last cache holds. Writes docs/benchmarks/kernels-<device>.json and .md (--tiny: build/benchmarks), also when an
operation failed; the exit status says so.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import report
import torch
from device import Device
from kernel_jobs import Job, Run, jobs
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
L2 = 128 * 2**20  # bytes that rotating inputs exceed
SETS = 64  # of inputs at most
TOLERANCE = 2e-2  # of bf16 results, relative to the largest value
MINUTES = 8.5


@dataclass
class Row:
    """error: of the largest value; None in milliseconds: not measured, and `failure` says why."""

    name: str
    error: float | None = None
    milliseconds: float | None = None
    spread: float = 0.0
    gigabytes_s: float = 0.0
    teraflops: float = 0.0
    of_ceiling: float = 0.0
    others_ms: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


def compare(job: Job) -> Row:
    """How far the kernel is from its definition."""
    row = Row(job.name)
    try:
        inputs = job.make()
        ours, theirs = (_results(run, _copies(inputs), job.written) for run in (job.run, job.define))
        row.error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not row.error <= TOLERANCE:
            row.failure = f"differs from its definition by {row.error:.2g} of the largest value"
    except Exception as error:  # one operation must not cost the others their measurement
        traceback.print_exc()
        row.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return row


def measure(device: Device, job: Job, row: Row, bandwidth: float, rate: float) -> None:
    """Fills a row's times."""
    sets = [job.make()]
    while not device.tiny and sum(_bytes(s) for s in sets) < L2 and len(sets) < SETS:
        sets.append(job.make())
    took, row.spread = device.time(lambda i: job.run(*sets[i]), len(sets), job.recorded)
    row.milliseconds, row.gigabytes_s, row.teraflops = took, job.bytes / took / 1e6, job.flops / took / 1e9
    row.of_ceiling = max(job.bytes / bandwidth, job.flops / rate) * 1e3 / took
    for name, other in job.others.items():
        recorded = job.recorded and name not in job.unrecorded
        try:
            row.others_ms[name] = device.time(lambda i, run=other: run(*sets[i]), len(sets), recorded)[0]
        except Exception as error:  # what others refuse is no failure of ours
            print(f"{job.name}, {name}: {error}", file=sys.stderr)


def _results(run: Run, inputs: list, written: tuple[int, ...]) -> Tensor:
    found = [run(*inputs), *(inputs[i] for i in written)]
    return torch.cat([x.detach().float().flatten() for x in found])


def _copies(inputs: tuple) -> list:
    return [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]


def _bytes(inputs: tuple) -> int:
    return sum(x.nbytes for x in inputs if isinstance(x, Tensor))


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        error = "-" if row.error is None else f"{row.error:.1e}"
        if row.milliseconds is None:
            lines.append([row.name, row.failure or "left out for time", *["-"] * 6, error])
            continue
        best = min(row.others_ms, key=row.others_ms.__getitem__, default=None)
        lines.append(
            [
                row.name,
                f"{row.milliseconds:.4f}",
                f"{row.spread:.4f}",
                f"{row.gigabytes_s:,.0f}",
                f"{row.teraflops:,.1f}",
                f"{100 * row.of_ceiling:.0f} %",
                "-" if best is None else f"{row.others_ms[best] / row.milliseconds:.2f}x",
                best or "-",
                error,
            ]
        )
    heads = ["operation", "ms", "+-", "GB/s", "TFLOP/s", "of ceiling", "faster", "than", "error"]
    return report.table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="a .json; the table goes beside it")
    given = parser.parse_args()
    device, end = Device(given.tiny), time.monotonic() + 60 * MINUTES
    if not device.cuda and not given.tiny:
        sys.exit("there is no CUDA device; --tiny shows under the interpreter that this script works")
    todo = [(job, compare(job)) for job in jobs(device)]
    failed = [row for _, row in todo if row.failure]
    for row in failed:
        print(f"{row.name}: {row.failure}", file=sys.stderr)
    print(f"{len(todo) - len(failed)} of {len(todo)} operations are right", file=sys.stderr, flush=True)
    bandwidth, rate = device.ceilings()
    for job, row in todo:
        if row.failure is None and time.monotonic() < end:
            measure(device, job, row, bandwidth, rate)
            print(f"{row.name}: {row.milliseconds:.4f} ms", file=sys.stderr, flush=True)
    rows = [row for _, row in todo]
    document = {
        "what": "kernels",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.name,
        "torch": torch.__version__,
        "copy_bytes_s": bandwidth,
        "product_flops_s": rate,
        "rows": [asdict(row) for row in rows],
    }
    folder = "build/benchmarks" if given.tiny else "docs/benchmarks"
    out = given.out or ROOT / folder / f"kernels-{device.name}.json"
    ceiling = f"Copy {bandwidth / 1e12:.2f} TB/s, product {rate / 1e12:.0f} TFLOP/s, torch {torch.__version__}."
    report.write(document, out, "\n\n".join([f"# Kernels: {device.name}", ceiling, table(rows)]) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
