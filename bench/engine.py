"""Whole steps of the engine on a GPU: decode at several batch sizes, and the prefill of one picture.

    python bench/engine.py              on a CUDA device; ends within 9 minutes
    python bench/engine.py --tiny       small models; with OPSIN_KERNELS=interpret TRITON_INTERPRET=1 on a CPU, to
                                        show that the script works

First small models must give the definitions' own tokens on the device, in steps launched anew and recorded. Then
published configurations with random weights go through the server's own engine: scheduler, batch, model, sampler. A
step ends when its tokens are on the host. The floor of a step is what the device's measured copy and product rates
allow for the bytes and operations that it cannot do without. Writes docs/benchmarks/engine-<device>.json and .md
(--tiny: build/benchmarks).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from device import Device
from engine_check import check
from image_tokens import files_of
from torch import nn

from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget, ModelFiles, ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.engine.engine import Engine
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.inspect_checkpoint import tensor_bytes
from opsin_server.engine.startup.memory_plan import free_bytes, resolve
from opsin_server.engine.startup.trial import trial
from opsin_server.ipc.messages import Arrays, Sampling, Submit

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 8.5
STEPS, WARM = 24, 4
QWEN_2B, QWEN_7B, LLAMA = "Qwen2-VL-2B-Instruct", "Qwen2-VL-7B-Instruct", "Llama-3.2-11B-Vision-Instruct"
# model, recorded steps or not, batch sizes, text tokens, edge of the picture that each prompt has (0: none)
DECODE = (
    (QWEN_2B, True, (1, 8, 32, 128, 256), 2048, 0),
    (QWEN_2B, False, (1, 32), 2048, 0),
    (QWEN_7B, True, (1, 32), 2048, 0),
    (LLAMA, True, (1, 8, 16), 512, 1120),
    (LLAMA, False, (1,), 512, 1120),
)
PREFILL = (QWEN_2B, QWEN_7B, LLAMA)
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "image_token_id": 290, "image_token_index": 290,
    "vision_start_token_id": 291, "vision_end_token_id": 292, "vision_token_id": 293, "video_token_id": 294,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cross_attention_layers": [1], "depth": 1, "embed_dim": 32,
    "num_heads": 2, "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0],
    "vision_output_dim": 64,
}  # fmt: skip


@dataclass
class Row:
    model: str
    what: str
    milliseconds: float
    spread: float
    floor_ms: float


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """A published configuration with small sizes."""
    small = {k: tiny(v) if isinstance(v, dict) else TINY.get(k, v) for k, v in config.items()}
    if "mrope_section" in small:
        small["mrope_section"] = [2, 3, 3]
    if "embed_dim" in small:
        small["hidden_size"] = TINY["hidden_size"]
    elif "supported_aspect_ratios" in small:
        small |= {"hidden_size": 32, "intermediate_size": 48, "image_size": 56}
    return small


def files(name: str, small: bool) -> ModelFiles:
    found = files_of(name)
    if not small:
        return found
    preprocessor = dict(found.preprocessor)
    if "max_image_tiles" in preprocessor:
        preprocessor["size"] = {"height": 56, "width": 56}
    return replace(found, config=tiny(dict(found.config)), preprocessor=preprocessor)


class Bench:
    """A model with random weights. small: with few and narrow layers."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, small: bool) -> None:
        self.device, self.dtype, self.small, self.name, self.count = device, dtype, small, name, 0
        self.files = files(name, small)
        registry = Registry()
        self.architecture = registry.architecture(self.files)
        self.spec: ModelSpec = self.architecture.spec(self.files)
        self.model: Model = build_model(self.spec, registry, device=device, dtype=dtype)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.2 if small else 0.02)  # (narrow layers must matter, too)

    def engine(self, sequences: int, context: int, recorded: bool) -> Engine:
        config = EngineConfig(
            model="", device=self.device.type, max_sequences=sequences, max_context=context,
            max_batch_tokens=64 if self.small else 8192, prefix_cache=False, graphs=recorded,
        )  # fmt: skip
        weights = tensor_bytes(self.model)
        gc.collect()
        free = free_bytes(self.device) + weights
        return assemble(
            self.model, self.spec, config,
            resolve(config, self.spec, self.device, self.dtype, weights, free),
        )  # fmt: skip

    def submit(self, engine: Engine, text: int, edge: int, count: int) -> int:
        """A prompt of random tokens, and a random picture before them; returns its length."""
        message, arrays = self.request(text, (edge,) if edge else (), count, Sampling(temperature=0.0))
        engine.submit(message, arrays)
        return len(arrays.ids)

    def request(self, text: int, edges: Sequence[int], count: int, sampling: Sampling) -> tuple[Submit, Arrays]:
        self.count += 1
        return trial(self.architecture, self.spec, str(self.count), text, edges, count, sampling)

    def floor(self, rows: int, cached: int, visual: int, sequences: int, rates: tuple[float, float]) -> float:
        """Milliseconds of a decoder pass: weights once, keys and values once; two operations a weight and row."""
        decoder, (bandwidth, rate) = self.spec.decoder, rates
        linears = sum(p.numel() for p in self.model.decoder.parameters() if p.dim() == 2)
        if not self.spec.decoder.tied:
            linears -= decoder.embeddings * decoder.width
        kv = 2 * decoder.kv_heads * decoder.head_dim * self.dtype.itemsize
        crossing = len(decoder.replaced)
        linears += 0 if self.model.fusion is None else sum(p.numel() for p in self.model.fusion.parameters())
        moved = linears * self.dtype.itemsize + sequences * (cached * decoder.own_layers + visual * crossing) * kv
        head = decoder.vocab * decoder.width
        work = 2 * ((linears - head) * rows + head * sequences)
        work += 4 * rows * (cached * decoder.own_layers + visual * crossing) * decoder.heads * decoder.head_dim
        return 1e3 * max(moved / bandwidth, work / rate)

    def decode(self, batch: int, text: int, edge: int, recorded: bool, rates: tuple[float, float]) -> Row:
        engine = self.engine(batch, text + WARM + STEPS + (8 if self.spec.memory else 4096 * bool(edge)) + 8, recorded)
        lengths = [self.submit(engine, text, edge, WARM + STEPS + 2) for _ in range(batch)]
        while any(s.generated < 1 for s in engine.sequences.values()):
            engine.step()
        took = [self._timed(engine) for _ in range(WARM + STEPS)][WARM:]
        visual = 0 if self.spec.memory is None or not edge else sum(i.rows for i in self._items(edge))
        quarters = statistics.quantiles(took, n=4)
        floor = self.floor(batch, max(lengths), visual, batch, rates)
        what = f"decode, batch {batch}, context {max(lengths):,}{', recorded' if recorded else ''}"
        return Row(self.name, what, quarters[1], (quarters[2] - quarters[0]) / 2, floor)

    def prefill(self, edge: int, rates: tuple[float, float]) -> Row:
        rounds = 3 if self.small else 8
        engine = self.engine(1, 8192 if not self.small else 512, recorded=False)
        took, length = [], 0
        for _ in range(rounds):
            length = self.submit(engine, 30, edge, 1)
            began = time.perf_counter()
            while engine.busy:
                engine.step()
            took.append(1e3 * (time.perf_counter() - began))
        took = took[1:]
        quarters = statistics.quantiles(took, n=4)
        items = self._items(edge)
        floor = self.floor(length, length, sum(i.rows for i in items), 1, rates) + self._vision(items, rates[1])
        return Row(self.name, f"prefill, {edge} x {edge} and 30 tokens", quarters[1], max(took) - min(took), floor)

    def _items(self, edge: int) -> list[Any]:
        return list(self.architecture.preprocess([np.zeros((edge, edge, 3), np.uint8)], self.spec, ImageBudget()))

    def _vision(self, items: list[Any], rate: float) -> float:
        tower = self.spec.vision
        assert tower is not None
        patches = sum(len(item.pixels) for item in items)
        weights = sum(p.numel() for m in (self.model.vision,) for p in m.parameters() if p.dim() == 2)
        return 1e3 * (2 * weights * patches + 4 * patches**2 * tower.width * tower.layers) / rate

    def _timed(self, engine: Engine) -> float:
        began = time.perf_counter()
        engine.step()
        return 1e3 * (time.perf_counter() - began)


def rows(device: Device, rates: tuple[float, float], end: float, left: list[str]) -> Iterator[Row]:
    for name in dict.fromkeys([*PREFILL, *(d[0] for d in DECODE)]):
        if time.monotonic() > end:
            left.append(name)
            continue
        bench = Bench(name, device.device, device.dtype, device.tiny)
        if name in PREFILL:
            yield bench.prefill(64 if device.tiny else 1024, rates)
        for model, recorded, batches, text, edge in DECODE:
            if model != name:
                continue
            for batch in (1, 3) if device.tiny else batches:
                if time.monotonic() > end:
                    left.append(f"{name} decode {batch}")
                    continue
                sizes = (20, 64 if edge else 0) if device.tiny else (text, edge)
                yield bench.decode(batch, *sizes, recorded and device.cuda, rates)
        del bench
        gc.collect()
        if device.cuda:
            torch.cuda.empty_cache()


def table(found: list[Row]) -> str:
    lines = []
    for r in found:
        share = f"{100 * r.floor_ms / r.milliseconds:.0f} %"
        lines.append([r.model, r.what, f"{r.milliseconds:.2f}", f"{r.spread:.2f}", f"{r.floor_ms:.2f}", share])
    return report.table(["model", "step", "ms", "+-", "floor ms", "of the floor"], lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="a .json; the table goes beside it")
    given = parser.parse_args()
    device, end = Device(given.tiny), time.monotonic() + 60 * MINUTES
    if not device.cuda and not given.tiny:
        sys.exit("there is no CUDA device; --tiny shows under the interpreter that this script works")
    right = check(lambda *of: Bench(*of, small=True), (QWEN_2B, LLAMA), device.cuda)
    rates, left, found = device.ceilings(), [], []
    for row in rows(device, rates, end, left):
        found.append(row)
        print(f"{row.model} {row.what}: {row.milliseconds:.2f} ms", file=sys.stderr, flush=True)
    document = {
        "what": "engine",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.name,
        "torch": torch.__version__,
        "copy_bytes_s": rates[0],
        "product_flops_s": rates[1],
        "small_models_are_right": right,
        "left_out_for_time": left,
        "rows": [asdict(row) for row in found],
    }
    folder = "build/benchmarks" if given.tiny else "docs/benchmarks"
    out = given.out or ROOT / folder / f"engine-{device.name}.json"
    ceiling = f"Copy {rates[0] / 1e12:.2f} TB/s, product {rates[1] / 1e12:.0f} TFLOP/s, torch {torch.__version__}."
    report.write(document, out, "\n\n".join([f"# Steps of the engine: {device.name}", ceiling, table(found)]) + "\n")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
