"""Trains within as little memory as a run says that it needs, times a factor, and tells what the process took for it.

python -m support.train_within FAMILY FACTOR
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
from pathlib import Path

import torch

from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_settings import TrainingSettings
from support import tiny
from support.training import Base, Example, LocalRows, base_of, drive, example, shape_of

WIDE = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 16,
}  # fmt: skip
TOWER = {"depth": 3, "embed_dim": 256, "num_heads": 8}


class Factor(MemoryPool):
    """Grants what is asked for, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__(0)
        self.factor, self.granted = factor, 0

    def take(self, least: int) -> int:
        self.granted = int(least * self.factor)
        return self.granted


def main() -> None:
    family, factor = sys.argv[1], float(sys.argv[2])
    torch.set_num_threads(1)
    model = tiny.qwen2_vl(**WIDE, vision=TOWER) if family == "qwen2_vl" else tiny.text_model(family, **WIDE)
    pictures = [(280, 280)] if family == "qwen2_vl" else []
    with tempfile.TemporaryDirectory() as folder:
        found = base_of(model, family, Path(folder) / "model")
        rows = [example(found.ours, seed, 300, pictures, labels=40) for seed in range(2)]
        train(found, rows, Path(folder) / "warm", 1.0)  # libraries have what they take for themselves
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
        before = memory("VmRSS")
        granted = train(found, rows, Path(folder) / "run", factor)
    print(json.dumps({"granted": granted, "took": memory("VmHWM") - before}))


def train(found: Base, rows: list[Example], folder: Path, factor: float) -> int:
    """Bytes that were granted."""
    settings = TrainingSettings(
        modules=found.of("language", "vision"), rank=16, batch_size=2, max_steps=2, save_every=2
    )
    pool = Factor(factor)
    run = Trainer(found.trained, settings, LocalRows(rows), folder, pool, shape_of(rows))
    drive(run.run())
    run.close()
    return pool.granted


def memory(name: str) -> int:
    """Of this process, bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
