"""The directory that is written: shards of tensors, their index, and what the configuration says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin_plugins.spec import TensorInfo
from opsin_server.quantize.chart import draw_chart
from opsin_server.quantize.page import page_of
from opsin_server.quantize.report import Report, as_json

SHARD_BYTES = 2 * 2**30
NAME = "model-{number:05d}.safetensors"
REPORT = "quantization-report"

Make = Callable[[str, Tensor], dict[str, Tensor]]
"""A stored tensor and its name -> what is written in its place, by name."""


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], make: Make) -> None:
    """One tensor at a time is a float beside a shard of what is written."""
    shard, size, files = dict[str, Tensor](), 0, list[list[str]]()

    def flush() -> None:
        nonlocal shard, size
        save_file(shard, folder / NAME.format(number=len(files) + 1), {"format": "pt"})
        files.append(list(shard))
        shard, size = {}, 0

    for key, tensor in tensors:
        made = make(key, tensor)
        shard |= {name: part.contiguous() for name, part in made.items()}
        size += sum(part.nbytes for part in made.values())
        if size >= SHARD_BYTES:
            flush()
    flush()
    for number in range(len(files)):  # safetensors makes them its user's alone; whoever reads one reads all
        (folder / NAME.format(number=number + 1)).chmod((folder / "config.json").stat().st_mode)
    names = {name: NAME.format(number=i + 1) for i, file in enumerate(files) for name in file}
    total = sum((folder / name).stat().st_size for name in set(names.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def stored(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    """In the order of the files."""
    for file in dict.fromkeys(info.file for info in tensors.values()):
        with safe_open(file, framework="pt") as opened:
            for key, info in tensors.items():
                if info.file == file:
                    yield key, opened.get_tensor(key)


def configure(folder: Path, config: Mapping[str, object]) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text("utf-8"))
    path.write_text(
        json.dumps({**document, "quantization_config": config}, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )


def write_report(folder: Path, report: Report) -> None:
    """As JSON, as one page, and as a picture."""
    (folder / f"{REPORT}.json").write_text(as_json(report), "utf-8")
    (folder / f"{REPORT}.html").write_text(page_of(report), "utf-8")
    draw_chart(report, folder / f"{REPORT}.png")
