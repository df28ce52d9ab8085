"""How many pictures a second become patches? Each family with one and two threads, and transformers' PIL processor.

    python bench/preprocess.py              some minutes; writes docs/benchmarks/preprocess-<machine>.json and .md
    python bench/preprocess.py --quick      one round of few pictures

Pictures of 1024 x 1024 pixels with the published settings of each family, decoded already. A round measures everything
once, one after the other, so that a slow spell of the machine falls on all of them. Threads share one process, as in
the server's API process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import report
from PIL import Image
from stats import Spread
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from opsin_plugins.loading.read_json import read_json
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import U8, ImageBudget, ModelFiles

CONFIGS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "configs"
FAMILIES: dict[str, tuple[str, Any]] = {
    "qwen2_vl": ("Qwen2-VL-2B-Instruct", Qwen2VLImageProcessorPil),
    "qwen2_5_vl": ("Qwen2.5-VL-3B-Instruct", Qwen2VLImageProcessorPil),
    "llava": ("llava-1.5-7b-hf", CLIPImageProcessorPil),
    "llava_next": ("llava-v1.6-mistral-7b-hf", LlavaNextImageProcessorPil),
    "llava.pixtral": ("pixtral-12b", PixtralImageProcessorPil),
    "idefics3": ("SmolVLM-256M-Instruct", Idefics3ImageProcessorPil),
    "mllama": ("Llama-3.2-11B-Vision-Instruct", MllamaImageProcessorPil),
    "qwen.visual": ("Qwen-VL-Chat", None),  # not in transformers
}
DROPPED = ("image_processor_type", "processor_class", "rescale_factor")  # what the processor takes otherwise
NOTES = """\
Pictures of 1024 x 1024 a second, median (min to max) over the rounds. Threads: two over one. Against transformers: one
thread of Opsin over one of its PIL processor, which also normalises to float32; Opsin does that on the device."""


def picture(seed: int) -> U8:
    """Smooth shapes and some noise, like a photograph: nothing that a filter finds easier than others."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((1024, 1024), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)


def ours(family: str) -> Callable[[U8], object]:
    source = CONFIGS / FAMILIES[family][0]
    files = ModelFiles(source, read_json(source / "config.json"), read_json(source / "preprocessor_config.json"))
    architecture = Registry().architecture(files)
    spec = architecture.spec(files)
    return lambda image: architecture.preprocess([image], spec, ImageBudget())


def theirs(family: str) -> Callable[[U8], object] | None:
    name, kind = FAMILIES[family]
    if kind is None:
        return None
    given = read_json(CONFIGS / name / "preprocessor_config.json")
    processor = kind(**{k: v for k, v in given.items() if k not in DROPPED})
    return lambda image: processor(images=Image.fromarray(image), return_tensors="np")


def rate(work: Callable[[U8], object], images: list[U8], threads: int, seconds: float) -> float:
    """Pictures a second."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, images[:threads]))
        start, done = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            done += len(list(pool.map(work, images)))
        return done / took


def measure(families: list[str], rounds: int, seconds: float) -> dict[str, dict[str, Spread]]:
    images = [picture(i) for i in range(8)]
    kinds: dict[tuple[str, str], Callable[[], float]] = {}
    for family in families:
        mine, other = ours(family), theirs(family)
        kinds[family, "one"] = partial(rate, mine, images, 1, seconds)
        kinds[family, "two"] = partial(rate, mine, images, 2, seconds)
        if other is not None:
            kinds[family, "transformers"] = partial(rate, other, images, 1, seconds)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in kinds}
    for number in range(rounds):
        for key, run in kinds.items():
            samples[key].append(run())
            print(f"round {number + 1}: {' '.join(key)} {samples[key][-1]:.1f} a second", file=sys.stderr, flush=True)
    found: dict[str, dict[str, Spread]] = {}
    for family in families:
        mine = {kind: samples[family, kind] for kind in ("one", "two", "transformers") if (family, kind) in samples}
        found[family] = {kind: Spread.of(values) for kind, values in mine.items()}
        found[family]["threads"] = Spread.of(b / a for a, b in zip(mine["one"], mine["two"], strict=True))
        if "transformers" in mine:
            pairs = zip(mine["one"], mine["transformers"], strict=True)
            found[family]["against"] = Spread.of(a / b for a, b in pairs)
    return found


def table(found: dict[str, dict[str, Spread]]) -> str:
    columns = ("one", "two", "threads", "transformers", "against")
    lines = [[family, *(str(row[c]) if c in row else "-" for c in columns)] for family, row in found.items()]
    return report.table(["family", "1 thread", "2 threads", "2 over 1", "transformers", "over transformers"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--quick", action="store_true", help="not for numbers that are published")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began, described = datetime.now(UTC), machine.describe()
    rounds, seconds = (1, 0.5) if given.quick else (3, 2.0)
    found = measure(given.families.split(","), given.rounds or rounds, seconds)
    document = report.header("preprocess", began, described) | {
        "rows": {family: {kind: asdict(spread) for kind, spread in row.items()} for family, row in found.items()}
    }
    title = f"# Preprocessing: {described['kind']}"
    text = "\n\n".join([title, report.about(document), table(found), NOTES]) + "\n"
    report.write(document, given.out or report.default_path("preprocess", given.quick), text)


if __name__ == "__main__":
    main()
