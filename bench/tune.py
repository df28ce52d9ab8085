"""Which tiles of attention are fastest on this GPU: the device's table, which serving then looks up.

    python bench/tune.py                    on a CUDA device: prunes, measures the rest, writes the table
    python bench/tune.py --prune 90         anywhere: the tiles that compile for sm_90 without spills and fit
    python bench/tune.py --tiny --out DIR   two tiles of one size, interpreted: shows that the script works

The compiler prunes first (shared memory, spills, tensor cores), on all processors at once; what it leaves is measured
with what it compiled. Within 9 minutes: sizes for which there is no time are left out of the table, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from device import Device
from kernel_jobs import PAGE

from opsin_kernels.gpu import attention, tuned
from opsin_kernels.layout import Bounds
from opsin_kernels.tools import launches as catalogue
from opsin_kernels.tools.compile_facts import TENSOR_CORES, Launch, facts
from opsin_kernels.tools.stand_in_driver import SHARED

BLOCKS, TILES, WARPS, STAGES = (16, 32, 64, 128), (32, 64, 128), (2, 4, 8), (2, 3, 4)
CONTEXT, MINUTES = 2048, 8.5


@dataclass(frozen=True)
class Task:
    """One size of attention: heads, key heads, head size, page (0: packed) and queries a sequence."""

    heads: int
    kv_heads: int
    size: int
    page: int
    queries: int

    def shapes(self) -> Iterator[attention.Shape]:
        group = self.heads // self.kv_heads
        for block_m, tile, warps, stages in itertools.product(BLOCKS, TILES, WARPS, STAGES):
            enough = block_m >= max(16, group)
            if enough and (block_m <= max(16, 2 * group) if self.queries == 1 else block_m >= 64):
                yield attention.Shape(self.heads, self.kv_heads, self.size, self.page, block_m, tile, warps, stages)

    def entry(self, shape: attention.Shape, milliseconds: float) -> dict[str, float]:
        numbers = {name: getattr(shape, name) for name in tuned.FIELDS}
        group = self.heads // self.kv_heads
        return {"group": group, "size": self.size, "page": self.page, "queries": self.queries} | numbers | {
            "ms": round(milliseconds, 5)
        }  # fmt: skip


def tasks(tiny: bool) -> list[Task]:
    if tiny:
        return [Task(2, 1, 16, 4, 1)]
    found = [Task(*sizes, PAGE, queries) for sizes in catalogue.DECODERS.values() for queries in (1, 1024)]
    return [*found, *(Task(*sizes, 0, 4096) for sizes in catalogue.TOWERS.values())]


def survives(task: Task, shape: attention.Shape, chip: int) -> bool:
    run = partial(
        catalogue.attend, task.heads, task.kv_heads, task.size, page=task.page, queries=task.queries,
        causal=task.page > 0, shape=shape,
    )  # fmt: skip
    launch = Launch("", "attend", run, matrix=True)
    try:
        found = facts(launch, chip)
    except Exception as error:  # whatever a compiler says of a tile that it cannot do
        print(f"{shape}: {str(error)[:100]}", file=sys.stderr)
        return False
    used = any(found.instructions[name] for name in TENSOR_CORES)
    return not found.spilled and used


def compiles(task: Task, shape: attention.Shape, chip: int) -> bool:
    """Whether a shape is worth measuring. On a GPU it is launched once, which leaves it compiled on the disk."""
    if not survives(task, shape, chip):
        return False
    if torch.cuda.is_available():
        launcher(Device(tiny=False), task, shape, sequences=1, length=task.queries)(0)
    return True


def launcher(
    device: Device, task: Task, shape: attention.Shape, sequences: int, length: int
) -> Callable[[int], torch.Tensor]:
    """What runs a shape: decode of some sequences, or one sequence of `queries` rows."""
    pages = -(-length // task.page) if task.page else 0
    keys = sequences * (pages * task.page if task.page else length)
    q = device.random(sequences * task.queries, task.heads, task.size)
    k, v = (device.random(keys, task.kv_heads, task.size) for _ in range(2))
    numbers = {"dtype": torch.int32, "device": device.device}
    table = torch.randperm(sequences * pages, **numbers).view(sequences, pages) if task.page else None
    starts = torch.arange(sequences + 1, **numbers) * task.queries
    bounds = Bounds(starts, torch.full((sequences,), length, **numbers), table, task.queries, length)
    return lambda _: attention.attention(q, k, v, bounds, task.page, causal=task.page > 0, shape=shape)


def measured(device: Device, task: Task, shape: attention.Shape) -> float:
    """Milliseconds."""
    sequences = 32 if task.queries == 1 and not device.tiny else 1
    length = (CONTEXT if task.queries == 1 else task.queries) if not device.tiny else 20
    return device.time(launcher(device, task, shape, sequences, length), 1)[0]


def best(device: Device, task: Task, shapes: list[attention.Shape]) -> dict[str, float]:
    timed = [(measured(device, task, shape), shape) for shape in shapes]
    took, shape = min(timed, key=lambda pair: pair[0])
    print(f"{task}: {shape} {took:.4f} ms, of {len(timed)}", file=sys.stderr, flush=True)
    return task.entry(shape, took)


def pruned(found: list[Task], chip: int) -> Iterator[tuple[Task, list[attention.Shape]]]:
    """The shapes that are left of each task, in order, as the compilers get through them."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [(task, s, pool.submit(compiles, task, s, chip)) for task in found for s in task.shapes()]
        for task in found:
            yield task, [s for t, s, kept in waiting if t == task and kept.result()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", type=int, choices=sorted(SHARED), help="of a chip; measures nothing")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=tuned.BESIDE, help="directory of the table")
    given = parser.parse_args()
    device, end, found = Device(given.tiny), time.monotonic() + 60 * MINUTES, tasks(given.tiny)
    if given.prune:
        for task, left in pruned(found, given.prune):
            print(f"{task}: {len(left)} of {len(list(task.shapes()))}", *left, sep="\n  ", flush=True)
        return
    if not device.cuda and not given.tiny:
        sys.exit("there is no CUDA device; --prune says what the compiler leaves")
    if device.cuda:
        major, minor = torch.cuda.get_device_capability()
        name, candidates = torch.cuda.get_device_name(), list(pruned(found, 10 * major + minor))
    else:
        name, candidates = "interpreter", [(task, list(itertools.islice(task.shapes(), 2))) for task in found]
    entries = []
    for task, shapes in candidates:
        if time.monotonic() < end and shapes:
            entries.append(best(device, task, shapes))
        else:
            print(f"{task}: left out", file=sys.stderr)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / tuned.file_name(name)
    path.write_text(json.dumps({"torch": torch.__version__, "attention": entries}, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
