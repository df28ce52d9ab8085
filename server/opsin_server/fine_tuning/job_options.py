"""What a job may say beyond OpenAI's hyperparameters, in its `opsin` object: the options of `opsin finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from opsin_server.errors import BadRequest, ConfigError
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.training_options import TrainingOptions
from opsin_server.jobs.what_trains import WhatTrains
from opsin_server.options import build, fields_of


class JobOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: WhatTrains = WhatTrains()
    training: TrainingOptions = TrainingOptions()
    data: DataOptions = DataOptions()


# What OpenAI's own fields say, and what follows from them.
ELSEWHERE = {"epochs": "n_epochs", "batch_size": "batch_size", "seed": "seed", "dpo_beta": "beta"}
FIELDS = {
    field.parameter: field for field in fields_of(JobOptions) if field.parameter not in (*ELSEWHERE, "keep_checkpoints")
}


def read_options(given: Mapping[str, Any]) -> JobOptions:
    """given: by the names of the command line's options, with underscores. Raises BadRequest."""
    for name in given:
        if (own := ELSEWHERE.get(name)) is not None:
            raise BadRequest(f"opsin.{name} is said by OpenAI's own '{own}'", param=f"opsin.{name}")
        if name not in FIELDS:
            message = f"Unrecognized request argument supplied: opsin.{name[:100]}"
            raise BadRequest(message, param=f"opsin.{name[:100]}", code="unknown_parameter")
    try:
        return build(JobOptions, given, FIELDS.values(), {})
    except ConfigError as error:
        raise BadRequest(f"opsin: {error}", param="opsin", code="invalid_value") from None
