"""What this device does at most, and what a launch costs: what every other row is measured by.

    python bench/ceilings.py              on a CUDA device
    python bench/ceilings.py --tiny       anywhere

Rows: a large copy; a large product; the host's time for a launch; a small kernel's time within a capture; and the
linears of one decoder layer of each model, as the library multiplies them, for several numbers of rows: no decode step
can be faster than they are together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_plan import COPY, DECODE, LAUNCH, LINEAR_ROWS, NODE, PRODUCT, linear_row
from image_tokens import files_of
from stage import Given, given

from opsin_kernels import rms_norm as norms
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import DecoderSpec

LAUNCHES = 500
BEYOND_L2 = 256 * 2**20  # bytes of weights that are cycled through


def linears(decoder: DecoderSpec) -> list[tuple[int, int]]:
    """Outputs and inputs of a layer's products, fused as the server fuses them."""
    heads, width = decoder.heads * decoder.head_dim, decoder.width
    qkv = heads + 2 * decoder.kv_heads * decoder.head_dim
    return [(qkv, width), (width, heads), (2 * decoder.mlp, width), (width, decoder.mlp)]


def layer(run: Given, decoder: DecoderSpec, count: int) -> dict[str, Any]:
    device = run.device
    shapes = [(16, 16)] * 4 if device.tiny else linears(decoder)
    size = sum(a * b for a, b in shapes) * device.dtype.itemsize
    sets = 1 if device.tiny else -(-BEYOND_L2 // size)
    weights = [[device.random(*shape) for shape in shapes] for _ in range(sets)]
    inputs = [device.random(count, shape[1]) for shape in shapes]

    def products(i: int) -> None:
        for x, weight in zip(inputs, weights[i], strict=True):
            F.linear(x, weight)

    took, spread = device.time(products, sets, samples=7, sample_ms=5.0)
    work = 2.0 * count * sum(a * b for a, b in shapes)
    return {"ms": took, "spread": spread, "bytes_s": size / took * 1e3, "flops_s": work / took * 1e3}


def small(run: Given) -> Callable[[], None]:
    device = run.device
    x, weight, floor = device.random(1, 128), device.random(128), torch.tensor(1e-6, device=device.device)
    norms.rms_norm(x, weight, floor)
    count = 3 if device.tiny else LAUNCHES

    def several() -> None:
        for _ in range(count):
            norms.rms_norm(x, weight, floor)

    return several


def launch(run: Given) -> dict[str, Any]:
    several, count = small(run), 3 if run.device.tiny else LAUNCHES
    several()
    run.device.wait()
    began = time.perf_counter()
    several()
    return {"us": 1e6 * (time.perf_counter() - began) / count}


def node(run: Given) -> dict[str, Any]:
    replay, count = run.device.captured(small(run)), 3 if run.device.tiny else LAUNCHES
    took = []
    for _ in range(5):
        run.device.wait()
        began = time.perf_counter()
        replay()
        run.device.wait()
        took.append(1e6 * (time.perf_counter() - began) / count)
    return {"us": sorted(took)[2]}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = given(parser, "ceilings", 1)
    device = run.device
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        COPY: lambda: {"bytes_s": device.copy_rate(), "device": device.describe()},
        PRODUCT: lambda: {"flops_s": device.product_rate()},
        LAUNCH: lambda: launch(run),
        NODE: lambda: node(run),
    }
    for name in DECODE:
        files = files_of(name)
        decoder = Registry().architecture(files).spec(files).decoder
        for count in LINEAR_ROWS:
            measures[linear_row(name, count)] = lambda d=decoder, n=count: layer(run, d, n)
    for name in run.rows.todo(measures):
        with run.rows.row(name, seconds=20) as values:
            values |= measures[name]()
        device.clear()


if __name__ == "__main__":
    main()
