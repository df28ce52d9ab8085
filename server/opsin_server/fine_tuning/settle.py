"""What a job's request becomes: the settings of a run, with nothing left to "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from opsin_plugins.loading.open_model import OpenModel
from opsin_server.fine_tuning.hyperparameters import Hyperparameters, Resolved, resolve, training_options
from opsin_server.fine_tuning.job_options import JobOptions
from opsin_server.fine_tuning.starting_point import StartingPoint
from opsin_server.ipc.training_settings import Method, TrainingSettings
from opsin_server.jobs.training_options import settings_of
from opsin_server.jobs.what_trains import chosen_modules


def settle(
    asked: Mapping[str, Any],
    options: JobOptions,
    start: StartingPoint | None,
    model: OpenModel,
    rows: int,
    micro_batch_tokens: int,
) -> tuple[TrainingSettings, Resolved]:
    """asked: what the job keeps of its request. rows: to train on. Raises ConfigError for modules that the model does
    not have."""
    wanted = msgspec.convert(asked["method"]["hyperparameters"], Hyperparameters)
    method: Method = "supervised" if asked["method"]["type"] == "supervised" else "dpo"
    width = model.spec.decoder.width
    resolved = resolve(wanted, rows, width, options.training, preferences=method == "dpo")
    training = training_options(options.training, resolved, asked["seed"])
    if start is None:
        modules, full = chosen_modules(options.what, model), options.what.finetune_projector == "full"
        return settings_of(training, modules, rows, method, micro_batch_tokens, full), resolved
    config = start.config
    training = replace(training, rank=config.rank, alpha=config.alpha, rslora=config.rslora)
    settings = settings_of(training, start.modules, rows, method, micro_batch_tokens, start.full_projector)
    return replace(settings, start=start.digest), resolved
