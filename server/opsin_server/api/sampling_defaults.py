"""How tokens are drawn where a request does not say: generation_config.json's own recommendation, then OpenAI's.

Only what that file writes down counts, as in vLLM: a class's defaults (top_k 50 in transformers) are nobody's advice.
Neither are they where transformers 5 wrote them down: in a file that it made from an old config.json, which lists them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from opsin_server.errors import ConfigError

LARGEST = 2**31 - 1
MADE_FROM_CONFIG = "_from_model_config"
CLASS_DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
_OTHER = object()


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request's fields of these names default to. temperature 0 is greedy; top_k 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def described(self) -> str:
        """The fields that differ from OpenAI's defaults, for the operator; empty where none does."""
        plain = SamplingDefaults()
        own = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name))
        return ", ".join(f"{name} {value:g}" for name, value in own)


def read_sampling_defaults(generation: Mapping[str, object]) -> SamplingDefaults:
    """generation: generation_config.json. `do_sample: false` is temperature 0. Raises ConfigError for a value that no
    draw can have."""
    if generation.get(MADE_FROM_CONFIG) is True:
        generation = {key: value for key, value in generation.items() if CLASS_DEFAULTS.get(key, _OTHER) != value}
    temperature = _number(generation, "temperature", 1.0, 0.0, math.inf)
    return SamplingDefaults(
        temperature=0.0 if generation.get("do_sample") is False else temperature,
        top_p=_number(generation, "top_p", 1.0, 0.0, 1.0) or 1.0,
        top_k=max(0, int(_number(generation, "top_k", 0, -1, LARGEST))),
        min_p=_number(generation, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_number(generation, "repetition_penalty", 1.0, 0.01, 100.0),
    )


def _number(generation: Mapping[str, object], name: str, default: float, least: float, most: float) -> float:
    value = generation.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value == math.inf:
        raise ConfigError(
            f"generation_config.json: {name} {value!r} is not between {least:g} and {most:g}; --generation-config none "
            "leaves the file's sampling out"
        )
    return value
