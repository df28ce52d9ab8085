"""Every kernel on a GPU: right first, then timed, at the sizes of published models.

    python bench/kernels.py                 on a CUDA device; ends within 9 minutes
    python bench/kernels.py --tiny          small sizes; with OPSIN_KERNELS=interpret TRITON_INTERPRET=1 on a CPU, which
                                            shows that the script works

Every operation is compared with its definition. Then: its time, the bytes and operations it cannot do without, what
fraction of the device's measured ceiling that is, and how long the best of what else is installed takes (torch,
liger-kernel). Calls are captured as CUDA graphs, and inputs rotate through more memory than the last cache holds.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from device import Device
from kernel_job import Call, Job
from kernel_jobs import jobs
from rows import first_line
from stage import given
from torch import Tensor

L2 = 128 * 2**20  # bytes that rotating inputs exceed
SETS = 64  # of inputs at most
TOLERANCE = 2e-2  # of bf16 results, relative to the largest value
LEAST = 5.0  # seconds for which an operation is worth beginning


class Wrong(RuntimeError):
    """A kernel does not do what its definition says."""


def compared(job: Job) -> float:
    """How far the kernel is from its definition, relative to the largest value. Raises Wrong for too far."""
    inputs = job.make()
    ours, theirs = (_results(run, _copies(inputs), job.written) for run in (job.run, job.define))
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error <= TOLERANCE:
        raise Wrong(f"differs from its definition by {error:.2g} of the largest value")
    return error


def measured(device: Device, job: Job, rates: tuple[float, float]) -> dict[str, Any]:
    sets = [job.make()]
    while not device.tiny and sum(_bytes(s) for s in sets) < L2 and len(sets) < SETS:
        sets.append(job.make())
    took, spread = device.time(lambda i: job.run(*sets[i]), len(sets), job.captured)
    others: dict[str, float] = {}
    for name, other in job.others.items():
        captured = job.captured and name not in job.uncaptured
        try:
            others[name] = device.time(lambda i, run=other: run(*sets[i]), len(sets), captured, samples=7)[0]
        except Exception as error:  # what others refuse is no failure of ours
            print(f"{job.name}, {name}: {first_line(error)}", file=sys.stderr)
            if device.broken():
                break
    return {
        "ms": took, "spread": spread, "gigabytes_s": job.bytes / took / 1e6, "teraflops": job.flops / took / 1e9,
        "of_ceiling": max(job.bytes / rates[0], job.flops / rates[1]) * 1e3 / took, "others_ms": others,
    }  # fmt: skip


def _results(run: Call, inputs: list, written: tuple[int, ...]) -> Tensor:
    found = [run(*inputs), *(inputs[i] for i in written)]
    return torch.cat([x.detach().float().flatten() for x in found])


def _copies(inputs: tuple) -> list:
    return [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]


def _bytes(inputs: tuple) -> int:
    return sum(x.nbytes for x in inputs if isinstance(x, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = given(parser, "kernels", 9)
    every = {job.name: job for job in jobs(run.device)}
    rates = run.rates()
    for name in run.rows.todo(every):
        if run.left < LEAST:
            print(f"{name}: left out for time", file=sys.stderr)
            continue
        with run.rows.row(name, seconds=40) as values:
            values["error"] = compared(every[name])
            values |= measured(run.device, every[name], rates)
        run.device.clear()


if __name__ == "__main__":
    main()
