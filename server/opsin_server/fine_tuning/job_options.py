"""What a job may say beyond OpenAI's hyperparameters, in its `opsin` object: the options of `opsin finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from opsin_server.errors import BadOption, BadRequest, ConfigError
from opsin_server.jobs.options import DataOptions, resize_of
from opsin_server.jobs.training_options import LARGEST, TrainingOptions
from opsin_server.jobs.what_trains import WhatTrains
from opsin_server.option import Option
from opsin_server.options import WrongOption, build, fields_of

Promote = Literal["manual", "on_success", "if_better"]


class JobOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """publish_as: an adapter, of which the model becomes a version as well, or an alias, which is moved to it. promote:
    when that happens to those who ask for the name."""

    publish_as: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None, Option("An adapter or an alias.")
    ] = None
    promote: Annotated[Promote, Option("When the name means the new model.")] = "on_success"
    max_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=LARGEST)] | None, Option("Of training, after which the job has failed.")
    ] = None
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
        if name not in FIELDS and name != "resize":
            message = f"Unrecognized request argument supplied: opsin.{name[:100]}"
            raise BadRequest(message, param=f"opsin.{name[:100]}", code="unknown_parameter")
    if "promote" in given and given.get("publish_as") is None:
        raise BadRequest("opsin.promote acts on opsin.publish_as, which is not given", param="opsin.promote")
    try:
        fixed = {"data": {"images": resize_of(given.get("resize"))}}
        return build(JobOptions, given, FIELDS.values(), fixed)
    except ConfigError as error:
        raise refused_option(error) from None


def refused_option(error: ConfigError) -> BadRequest:
    """With the name that the option has in a request."""
    if isinstance(error, WrongOption):
        param = f"opsin.{error.field.parameter}"
        return BadRequest(f"Invalid value for '{param}': it must be {error.field.words}", param=param)
    if isinstance(error, BadOption):
        return BadRequest(f"opsin.{error}", param=f"opsin.{error.name}")
    return BadRequest(f"opsin: {error}", param="opsin")
