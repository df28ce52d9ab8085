"""A checkpoint of a training run: the adapter as PEFT saves one, and all that the run needs to go on from there.

A checkpoint's folder appears whole or not at all. safetensors and JSON; nothing in it is executed when it is read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_server.durable import sync_file, sync_folder
from opsin_server.ipc.training_settings import START

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STATE, NUMBERS = "training_state.safetensors", "training_state.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """What is written, copied: the run may go on meanwhile. state: flat, first and second [P]; numbers: the rest."""

    step: int
    adapter: Mapping[str, Tensor]
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


class CheckpointFolder:
    """All checkpoints of a run, each in a folder of its own by its step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def all(self) -> list[Path]:
        """Oldest first."""
        found = [path for path in self._folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
        return sorted(found, key=step_of)

    def start(self) -> dict[str, Tensor]:
        """Of the adapter that the run trains on from. Raises OSError."""
        return load_file(self._folder / START / WEIGHTS)

    @property
    def newest(self) -> Path | None:
        found = self.all
        return found[-1] if found else None

    def forget_after(self, step: int) -> None:
        """Those of later steps: they are made again."""
        for folder in self.all:
            if step_of(folder) > step:
                shutil.rmtree(folder)

    def chosen(self, best: int) -> Path | None:
        """That of step `best`; 0: the newest."""
        return next((path for path in self.all if step_of(path) == best), None) if best else self.newest

    def write(self, checkpoint: Checkpoint) -> Path:
        """Returns its folder. One that is there is never touched: no moment is without a checkpoint. Raises OSError."""
        out = self._folder / f"{PREFIX}{checkpoint.step}"
        made = self._folder / f".{out.name}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        save_file(dict(checkpoint.adapter), made / WEIGHTS, metadata={"format": "pt"})
        (made / CONFIG).write_text(json.dumps(checkpoint.config, indent=2, sort_keys=True) + "\n")
        save_file(dict(checkpoint.state), made / STATE)
        (made / NUMBERS).write_text(json.dumps(checkpoint.numbers, indent=2, sort_keys=True) + "\n")
        for file in made.iterdir():
            sync_file(file)
        sync_folder(made)
        made.rename(out)
        sync_folder(self._folder)
        return out

    def forget(self, keep: int, best: int) -> None:
        """All but the newest and the best."""
        for folder in self.all[:-keep]:
            if step_of(folder) != best:
                shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of a checkpoint: its tensors and its numbers."""
    return load_file(folder / STATE), json.loads((folder / NUMBERS).read_text())
