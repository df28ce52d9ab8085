"""What a prefill saves where the last layer computes only the rows that are asked for, from its output projection on.

python bench/last_layer.py      opsin-mini and a random decoder of the 135M class; a minute
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import models
import report
import torch
from tables import table

from opsin_kernels.layout import Layout
from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.decoder import ModelInputs
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.open_model import open_model

LENGTHS = (32, 128, 256, 512)
ROUNDS, WARM = 15, 2


def loaded(directory: Path) -> Model:
    opened = open_model(directory)
    model = build_model(opened.spec, opened.registry)
    load_weights(model, opened.architecture.weights(opened.spec), opened.files)
    return model


@torch.no_grad()
def ratios(model: Model, length: int) -> list[float]:
    """Seconds of a prompt of which the last row is asked for, over those where all are, round by round."""
    ids = torch.arange(length) % 100 + 5
    axes = max(1, len(model.spec.decoder.rope.sections))
    every = ModelInputs(torch.arange(length).expand(axes, -1), Layout([length], [length]))
    last = replace(every, wanted=torch.tensor([length - 1]))
    found = []
    for _ in range(WARM + ROUNDS):
        seconds = []
        for inputs in (every, last):
            start = time.perf_counter()
            model.logits(model(ids, inputs)[-1:])
            seconds.append(time.perf_counter() - start)
        found.append(seconds[1] / seconds[0])
    return found[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models.NAMES:
            model = loaded(models.prepare(name, Path(folder)))
            for length in LENGTHS:
                found = ratios(model, length)
                spread = f"{min(found):.2f}-{max(found):.2f}"
                layers = str(model.spec.decoder.layers)
                lines.append([name, layers, str(length), f"{statistics.median(found):.2f}", spread])
    about = (
        "Time of a prompt's forward pass where the last layer computes one row from its output projection on, over the "
        f"same with all rows: median and range of {ROUNDS} interleaved rounds, one thread, float32."
    )
    report.write_page(
        "last-layer",
        "The last layer",
        datetime.now(UTC),
        about,
        table(["model", "layers", "prompt tokens", "ratio", "range"], lines),
        given.out,
    )


if __name__ == "__main__":
    main()
