"""Which tiles of attention are fastest on this GPU: the device's table, which serving then looks up.

    python bench/tune.py                    on a CUDA device: prunes, measures the rest, writes the table
    python bench/tune.py --prune 90         anywhere: the tiles that compile for sm_90 without spills and fit
    python bench/tune.py --tiny             two tiles of one size, also on a CPU: shows that the script works

The compiler prunes (shared memory, spills, tensor cores) on all other processors, the sizes that matter most first;
what it leaves of one is measured while it goes on with the next, from the kernels that it left on the disk. A size's
fastest tiles are measured once more, and must give what the tile without a table gives. The table is written after
every size; those for which there is no time are left out of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rows
import torch
from device import Device
from gpu_plan import TILES
from kernel_jobs import PAGE
from stage import Given, given

from opsin_kernels.gpu import attention, tuned
from opsin_kernels.gpu.attention_shapes import Shape, shape_for, splits_for
from opsin_kernels.layout import Bounds
from opsin_kernels.tools import launches as catalogue
from opsin_kernels.tools.compile_facts import TENSOR_CORES, Launch, facts
from opsin_kernels.tools.stand_in_driver import SHARED

BLOCKS, WIDTHS, WARPS, STAGES = (16, 32, 64, 128), (32, 64, 128), (2, 4, 8), (2, 3, 4)
PROCESSORS = 132  # of the chip that --prune is asked about
FINAL = 3  # tiles that are measured once more
TOLERANCE = 2e-2  # between tiles, in bf16, relative to the largest value
LEAST = 5.0  # seconds for which a size is worth beginning


class Wrong(RuntimeError):
    """A tile gives something else than the tile without a table."""


@dataclass(frozen=True)
class Task:
    """One size of attention: heads, key heads, head size, page (0: packed; 1: rows of a memory), queries a sequence;
    sequences of `length` keys are measured."""

    heads: int
    kv_heads: int
    size: int
    page: int
    queries: int
    sequences: int = 1
    length: int = 0

    @property
    def causal(self) -> bool:
        return self.page > 1

    def shapes(self) -> Iterator[Shape]:
        group = self.heads // self.kv_heads
        for block_m, width, warps, stages in itertools.product(BLOCKS, WIDTHS, WARPS, STAGES):
            enough = block_m >= max(16, group)
            if enough and (block_m <= max(16, 2 * group) if self.queries == 1 else block_m >= 64):
                yield Shape(self.heads, self.kv_heads, self.size, self.page, block_m, width, warps, stages)

    def default(self) -> Shape:
        return shape_for(self.heads, self.kv_heads, self.size, self.page, self.queries)

    def splits(self, shape: Shape, processors: int) -> int:
        tiles = self.sequences * (1 if self.queries == 1 else self.queries // shape.block_q + 1)
        return splits_for(tiles * self.kv_heads, self.length, processors, shape.tile)

    def entry(self, shape: Shape) -> dict[str, int]:
        numbers = {name: getattr(shape, name) for name in tuned.FIELDS}
        group = self.heads // self.kv_heads
        return {"group": group, "size": self.size, "page": self.page, "queries": self.queries} | numbers


def tasks(tiny: bool) -> dict[str, Task]:
    """By name, those that matter most first."""
    if tiny:
        return {"tile of tiny decode": Task(2, 1, 16, 4, 1, 1, 20)}
    decoders, towers = catalogue.DECODERS, catalogue.TOWERS
    decode = {f"tile of {name} decode": Task(*sizes, PAGE, 1, 64, 2048) for name, sizes in decoders.items()}
    prefill = {f"tile of {name} prefill": Task(*sizes, PAGE, 1024, 1, 1024) for name, sizes in decoders.items()}
    packed = {f"tile of {name}": Task(*sizes, 0, 4096, 1, 4096) for name, sizes in towers.items()}
    memory = {"tile of Llama-3.2-11B memory": Task(*decoders["Llama-3.2-11B"], 1, 1, 8, 6404)}
    first = [*list(decode)[:2], *list(packed)[:1], *list(decode)[2:3], *memory, *list(prefill)[:3]]
    every = decode | prefill | packed | memory
    return {name: every[name] for name in dict.fromkeys([*first, *every])}


def survives(task: Task, shape: Shape, chip: int, processors: int) -> bool:
    """Whether the compiler makes something of a shape that is worth measuring. What it makes stays on the disk, where
    a launch with the same tensors finds it."""
    run = partial(
        catalogue.attend, task.heads, task.kv_heads, task.size, page=task.page, queries=task.queries,
        causal=task.causal, splits=task.splits(shape, processors), shape=shape,
    )  # fmt: skip
    try:
        found = facts(Launch("", "attend", run, matrix=True), chip)
    except Exception as error:  # whatever a compiler says of a tile that it cannot do
        print(f"{shape}: {rows.first_line(error)[:100]}", file=sys.stderr)
        return False
    return not found.spilled and any(found.instructions[name] for name in TENSOR_CORES)


def launcher(device: Device, task: Task) -> Callable[[Shape], torch.Tensor]:
    """What runs a shape, always on the same tensors."""
    pages = -(-task.length // task.page) if task.page else 0
    keys = task.sequences * (pages * task.page if task.page else task.length)
    q = device.random(task.sequences * task.queries, task.heads, task.size)
    k, v = (device.random(keys, task.kv_heads, task.size) for _ in range(2))
    numbers: Any = {"dtype": torch.int32, "device": device.device}
    table = torch.randperm(task.sequences * pages, **numbers).view(task.sequences, pages) if task.page else None
    starts = torch.arange(task.sequences + 1, **numbers) * task.queries
    lengths = torch.full((task.sequences,), task.length, **numbers)
    bounds = Bounds(starts, lengths, table, task.queries, task.length)
    return lambda shape: attention.attention(q, k, v, bounds, task.page, causal=task.causal, shape=shape)


def best(run: Given, task: Task, shapes: Iterator[Shape]) -> dict[str, Any]:
    """The fastest of the shapes, how it compares with the default, and that both give the same."""
    device, attend = run.device, launcher(run.device, task)

    def timed(shape: Shape, **how: Any) -> float:
        return device.time(lambda _: attend(shape), 1, **how)[0]

    quick: dict[Shape, float] = {}
    for shape in shapes:
        quick[shape] = timed(shape, samples=3, sample_ms=2.0)
        if run.left < LEAST:
            break
    default, least = task.default(), sorted(quick, key=quick.__getitem__)[:FINAL]
    last = {shape: timed(shape, samples=9, sample_ms=8.0) for shape in dict.fromkeys([*least, default])}
    shape = min(last, key=last.__getitem__)
    ours, theirs = (attend(s).float() for s in (shape, default))
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error <= TOLERANCE:
        raise Wrong(f"{shape} differs from the default tile by {error:.2g} of the largest value")
    return {
        "ms": last[shape], "default_ms": last[default], "faster": last[default] / last[shape], "tried": len(quick),
        "tile_error": error, "entry": task.entry(shape),
    }  # fmt: skip


class Pruned:
    """What the compiler leaves, in the order in which tasks are asked for."""

    def __init__(self, found: dict[str, Task], chip: int, processors: int) -> None:
        workers = max(1, (os.cpu_count() or 2) - 1)
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        self._waiting: dict[str, list[tuple[Shape, Future[bool]]]] = {
            name: [(s, self._pool.submit(survives, task, s, chip, processors)) for s in task.shapes()]
            for name, task in found.items()
        }

    def shapes(self, name: str, seconds: float) -> Iterator[Shape]:
        """Those of a task that have been compiled within so many seconds."""
        end = time.monotonic() + seconds
        for shape, kept in self._waiting[name]:
            try:
                if kept.result(timeout=max(0.0, end - time.monotonic())):
                    yield shape
            except Exception as error:  # too late, or a compiler took its process down
                print(f"{name}: {shape}: {type(error).__name__}", file=sys.stderr)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def table(run: Given, folder: Path) -> None:
    """Written from the rows of every command so far."""
    device = run.device
    done = rows.succeeded(rows.read(run.rows.path))
    entries = [row["entry"] | {"ms": row["ms"]} for row in done.values() if "entry" in row]
    name = torch.cuda.get_device_name() if device.cuda else device.name
    folder.mkdir(parents=True, exist_ok=True)
    document = {"torch": torch.__version__, "attention": entries}
    (folder / tuned.file_name(name)).write_text(json.dumps(document, indent=1) + "\n")


def prune(chip: int) -> None:
    pruned = Pruned(tasks(False), chip, PROCESSORS)
    for name, task in tasks(False).items():
        left = list(pruned.shapes(name, 3600))
        print(f"{name}: {len(left)} of {len(list(task.shapes()))}", *left, sep="\n  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", type=int, choices=sorted(SHARED), help="of a chip; measures nothing")
    parser.add_argument("--out", type=Path, help="directory of the table; without: beside the rows, or in the package")
    early, _ = parser.parse_known_args()
    if early.prune:
        prune(early.prune)
        return
    run = given(parser, "tune", 9)
    device, every = run.device, tasks(run.args.tiny)
    folder = run.args.out or (run.args.rows.parent if run.args.rows else tuned.BESIDE)
    left = {name: every[name] for name in run.rows.todo(every)}
    pruned = None
    if device.cuda and left:
        major, minor = torch.cuda.get_device_capability()
        processors = torch.cuda.get_device_properties(device.device).multi_processor_count
        pruned = Pruned(left, 10 * major + minor, processors)
    try:
        for name, task in left.items():
            if run.left < LEAST:
                break
            shapes = itertools.islice(task.shapes(), 2) if pruned is None else pruned.shapes(name, run.left - LEAST)
            with run.rows.row(name, seconds=max(20.0, run.left)) as values:
                values |= best(run, task, shapes)
            table(run, folder)
    finally:  # (a device that broke ends the process, and compilations that are left would keep it)
        if pruned is not None:
            pruned.close()
    missing = [name for name in every if name not in rows.succeeded(rows.read(run.rows.path))]
    if missing:
        run.rows.failed(TILES, f"not measured: {', '.join(missing)}")
    else:
        run.rows.ended(TILES, 0.0, sizes=len(every))


if __name__ == "__main__":
    main()
