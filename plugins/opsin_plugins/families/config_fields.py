"""Reads fields of a published configuration by type, so that a wrong one is named instead of failing later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

from opsin_plugins.spec import Activation, Config, SpecError

_MISSING = object()
_ACTIVATIONS: Mapping[str, Activation] = {name: name for name in get_args(Activation)} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


LARGEST = 2**31 - 1


def integer(config: Config, key: str, default: object = _MISSING, *, least: int = 1, most: int = LARGEST) -> int:
    """A size or a count, unless `least` says otherwise."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{key} must be an integer, got {_shown(value)}")
    if not least <= value <= most:
        raise SpecError(
            f"{key} must be at least {least}, got {value}" if value < least else f"{key} {value} is too large"
        )
    return value


def layer_count(config: Config, key: str, default: object = _MISSING, *, least: int = 1) -> int:
    """Each layer is built before a key is checked: what no model has must not take hours."""
    return integer(config, key, default, least=least, most=MOST_LAYERS)


MOST_LAYERS = 1024


def number(config: Config, key: str, default: object = _MISSING) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{key} must be a finite number, got {_shown(value)}")
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise SpecError(f"{key} must be true or false, got {_shown(value)}")
    return value


def section(config: Config, key: str, default: Config | None = None) -> Config:
    """A configuration within one. default: what stands for one that is missing, or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, Mapping):
        raise SpecError(f"{key} must be an object, got {_shown(value)}")
    return value


def activation(config: Config, key: str, default: str) -> Activation:
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise SpecError(f"{key} {name!r} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[str(name)]


def three(config: Config, key: str, default: object = _MISSING) -> tuple[float, float, float]:
    """A number for each channel, or one for all."""
    value = config.get(key, default)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value, value, value)
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise SpecError(f"{key} must be three numbers, got {_shown(value)}")
    return float(value[0]), float(value[1]), float(value[2])


def integers(
    config: Config, key: str, default: Sequence[int] = (), *, null: Sequence[int] | None = None
) -> tuple[int, ...]:
    """null: what stands for an explicit null, where transformers takes one."""
    value = config.get(key, default)
    if value is None:
        value = null
    if not isinstance(value, Sequence) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise SpecError(f"{key} must be a list of integers, got {_shown(value)}")
    return tuple(value)


def token_ids(value: object) -> tuple[int, ...]:
    """An eos_token_id: absent, one id, or several."""
    if value is None:
        return ()
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise SpecError(f"eos_token_id must be an id or a list of ids, got {_shown(value)}")
    return tuple(values)


def _shown(value: object) -> str:
    return "nothing" if value is _MISSING else repr(value)[:100]
