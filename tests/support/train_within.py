"""Trains within as little memory as a run says that it needs, times a factor, and tells what the process took for it.

python -m support.train_within FAMILY FACTOR
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch

from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_settings import TrainingSettings
from support import tiny
from support.training import LocalRows, base_of, drive, example, shape_of

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
        modules = found.of("language", "vision")
        settings = TrainingSettings(modules=modules, rank=16, batch_size=2, max_steps=2, save_every=2)
        pool = Factor(factor)
        run = Trainer(found.trained, settings, LocalRows(rows), Path(folder) / "run", pool, shape_of(rows))
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        drive(run.run())
        run.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"granted": pool.granted, "took": peak - before}))


if __name__ == "__main__":
    main()
