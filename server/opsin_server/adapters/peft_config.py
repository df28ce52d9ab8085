"""adapter_config.json, as PEFT writes it: what is served, and what is refused by its name.

A field that this file does not list may be absent, null, false or empty; anything else in it could change what the
adapter computes, and is refused. Sources: `peft.LoraConfig` up to 0.21, and the fields that Unsloth and ms-swift add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import re2

from opsin_server.adapters.problems import BadAdapter

MAX_PATTERNS = 4096  # one for each linear of a large model
MAX_PATTERN = 512  # characters
PATTERN_MEMORY = 2**20

# They say where an adapter comes from or how it was trained, and change nothing of what it computes.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config",
    "loftq_config", "lorap_emb_lr", "lorap_lr_ratio", "lora_dtype", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
ACTING = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "init_lora_weights"}
REFUSED = {
    "use_dora": "DoRA scales each output by a norm of the adapted weight",
    "bias": "it changes biases of the base model",
    "lora_bias": "B has a bias",
    "alora_invocation_tokens": "an activated LoRA acts from a sequence of tokens on",
    "fan_in_fan_out": "its factors are of transposed weights",
    "target_parameters": "it changes parameters that are no linear layers",
    "trainable_token_indices": "it changes token embeddings",
    "layer_replication": "it repeats layers of the base model",
    "use_qalora": "QALoRA pools inputs before A",
    "arrow_config": "Arrow chooses among several adapters for each token",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA has singular values between A and B",
    "velora_config": "VeLoRA is not known to be plain LoRA once trained",
    "monteclora_config": "MonteCLoRA is not known to be plain LoRA once trained",
    "megatron_config": "its layers are split over Megatron's ranks",
}
# What the base is changed by before training starts: the files hold a difference to that other base.
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")
UNCHANGED_BASE = ("gaussian", "eva", "orthogonal")
NOT_SET: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class PeftConfig:
    """base_model: a name that says little (it is a path of the machine that trained). modules_to_save: names of modules
    that were trained whole."""

    rank: int
    alpha: float
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    base_model: str | None = None

    def rank_of(self, module: str) -> int:
        """Of a module by its path in the model that was trained."""
        return self.ranks.get(_pattern(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What B · A is multiplied by."""
        alpha, rank = self.alphas.get(_pattern(self.alphas, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    """The first that matches the end of a module's path from a dot on, as PEFT chooses; RE2 takes linear time."""
    return next((p for p in patterns if _compiled(p).fullmatch(module)), "")


def _compiles(pattern: str) -> bool:
    if len(pattern) > MAX_PATTERN:
        return False
    try:
        _compiled(pattern)
    except re2.error:
        return False
    return True


@lru_cache(MAX_PATTERNS)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.max_mem, options.log_errors = PATTERN_MEMORY, False
    return re2.compile(rf"(?:.*\.)?(?:{pattern})", options)


def read_config(document: Mapping[str, Any]) -> PeftConfig:
    """Raises BadAdapter, listing every field that cannot be served."""
    problems = []
    kind = document.get("peft_type", "LORA")
    if kind != "LORA":
        raise BadAdapter(f"adapter_config.json: peft_type {_shown(kind)} is not served (LORA is)")
    for name, value in document.items():
        if name in HARMLESS or name in ACTING or value in NOT_SET or (name == "bias" and value == "none"):
            continue
        why = REFUSED.get(name, "this version does not know what it does")
        problems.append(f"adapter_config.json: {name} is {_shown(value)}, which is not served: {why}")
    if problems_of_start := _residual(document.get("init_lora_weights")):
        problems.append(problems_of_start)
    found = {name: read(document, name, problems) for name, read in FIELDS.items()}
    if problems:
        raise BadAdapter(*problems)
    base = document.get("base_model_name_or_path")
    return PeftConfig(**found, base_model=base if isinstance(base, str) else None)


def _residual(start: Any) -> str:
    """Why weights that were initialised so cannot be served; empty: they can."""
    if start is None or isinstance(start, bool):
        return ""
    name = start.lower() if isinstance(start, str) else ""
    if name in UNCHANGED_BASE:
        return ""
    if name.startswith(RESIDUAL):
        return (
            f"adapter_config.json: init_lora_weights is {_shown(start)}, which changes the base model before training: "
            "over the published base the answers would be wrong. Convert it to plain LoRA where it was trained "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return f"adapter_config.json: init_lora_weights is {_shown(start)}, which this version does not know"


def _rank(document: Mapping[str, Any], name: str, problems: list[str]) -> int:
    value = document.get("r", 8)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problems.append(f"adapter_config.json: r is {_shown(value)}, not a rank")
        return 1
    return value


def _alpha(document: Mapping[str, Any], name: str, problems: list[str]) -> float:
    value = document.get("lora_alpha", 8)
    if not _is_number(value):
        problems.append(f"adapter_config.json: lora_alpha is {_shown(value)}, not a number")
        return 1.0
    return float(value)


def _flag(document: Mapping[str, Any], name: str, problems: list[str]) -> bool:
    value = document.get("use_rslora") or False
    if not isinstance(value, bool):
        problems.append(f"adapter_config.json: use_rslora is {_shown(value)}, neither true nor false")
    return value is True


def _modules(document: Mapping[str, Any], name: str, problems: list[str]) -> tuple[str, ...]:
    value = document.get("modules_to_save") or []
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        problems.append(f"adapter_config.json: modules_to_save is {_shown(value)}, not a list of names")
        return ()
    return tuple(value)


def _of_patterns(key: str, fits: Callable[[Any], bool]) -> Callable[[Mapping[str, Any], str, list[str]], Any]:
    def read(document: Mapping[str, Any], name: str, problems: list[str]) -> Mapping[str, Any]:
        value = document.get(key) or {}
        if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
            problems.append(f"adapter_config.json: {key} is no object of at most {MAX_PATTERNS} patterns")
            return {}
        for pattern, number in value.items():
            if not fits(number):
                problems.append(f"adapter_config.json: {key}[{_shown(pattern)}] is {_shown(number)}")
            if not _compiles(pattern):
                problems.append(f"adapter_config.json: {key} has {_shown(pattern)}, a pattern that is not read")
        return value

    return read


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


FIELDS: Mapping[str, Callable[[Mapping[str, Any], str, list[str]], Any]] = {
    "rank": _rank,
    "alpha": _alpha,
    "rslora": _flag,
    "modules_to_save": _modules,
    "ranks": _of_patterns("rank_pattern", _is_rank),
    "alphas": _of_patterns("alpha_pattern", _is_number),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
