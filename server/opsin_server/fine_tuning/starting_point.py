"""An adapter that a job trains on from: what of a run follows from it, and its files where the run looks for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.weight_files import read_extents
from opsin_plugins.spec import SpecError
from opsin_server.adapters.peft_config import PeftConfig, read_config
from opsin_server.adapters.problems import BadAdapter
from opsin_server.errors import BadRequest, ConfigError
from opsin_server.jobs.what_trains import WhatTrains, chosen_modules
from opsin_server.storage.records import SourceFile
from opsin_server.storage.state import State

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, FACTOR = "base_model.model.", ".lora_A.weight"
# What follows from the adapter, and cannot be said beside it.
SETTLED = ("lora_rank", "lora_alpha", "use_rslora", "init_lora_weights", "target_modules", "freeze_vision_first_n")
SETTLED_BY = "finetune_"


@dataclass(frozen=True)
class StartingPoint:
    """digest: of its weights. modules: published names, all of one rank."""

    digest: str
    modules: tuple[str, ...]
    config: PeftConfig

    @property
    def full_projector(self) -> bool:
        return bool(self.config.modules_to_save)


def described_start(name: str, source: Mapping[str, SourceFile]) -> dict[str, str]:
    """What a job keeps of it, as JSON. Raises BadRequest for an adapter that no run here could have written."""
    if missing := {CONFIG, WEIGHTS} - source.keys():
        raise _refused(name, f"it was stored without {min(missing)}")
    return {"model": name, "config": source[CONFIG].sha256, "weights": source[WEIGHTS].sha256}


def read_start(start: Mapping[str, str], state: State, tenant: str, model: OpenModel) -> StartingPoint:
    """start: as `described_start` gives it. Raises BadRequest."""
    name = start["model"]
    try:
        config = read_config(json.loads(state.blobs.local_path(tenant, start["config"]).read_bytes()))
        with state.blobs.local_path(tenant, start["weights"]).open("rb") as opened:
            keys = read_extents(opened)
        named = [key.removeprefix(PREFIX).removesuffix(FACTOR) for key in keys if key.endswith(FACTOR)]
        modules = chosen_modules(WhatTrains(target_modules=tuple(named)), model) if named else ()
    except (BadAdapter, ConfigError, SpecError, ValueError) as error:
        raise _refused(name, str(error)) from None
    if config.ranks or config.alphas:
        raise _refused(name, "its modules have several ranks or scales")
    if not all(key.startswith(PREFIX) for key in keys):
        raise _refused(name, f"its tensors are not named {PREFIX}...")
    return StartingPoint(start["weights"], modules, config)


def check_options(given: Mapping[str, Any], name: str) -> None:
    """given: the `opsin` object. Raises BadRequest for what follows from the adapter."""
    said = next((option for option in given if option in SETTLED or option.startswith(SETTLED_BY)), None)
    if said is not None:
        raise BadRequest(f"opsin.{said} follows from '{name}', which is trained on from", param=f"opsin.{said}")


def place_start(start: StartingPoint, state: State, tenant: str, folder: Path) -> None:
    """folder: where the run looks for the weights. They are there, whole, or not at all."""
    path = folder / WEIGHTS
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS}"
    shutil.copyfile(state.blobs.local_path(tenant, start.digest), part)
    part.replace(path)


def _refused(name: str, why: str) -> BadRequest:
    return BadRequest(f"'{name}' cannot be trained on from: {why}", param="model")
