"""config.json as people have it: short, with nulls, as transformers expands it. Its reading is the oracle."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from opsin_plugins.loading.open_model import open_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ModelFiles, ModelSpec, SpecError
from support import published

NAMES = [
    "Idefics3-8B-Llama3",
    "Llama-3.2-11B-Vision-Instruct",
    "Qwen2-VL-2B-Instruct",
    "Qwen2-VL-7B-Instruct-AWQ",
    "Qwen2.5-VL-7B-Instruct",
    "Qwen3-VL-2B-Instruct",
    "SmolVLM-256M-Instruct",
    "llava-1.5-7b-hf",
    "llava-v1.6-mistral-7b-hf",
    "pixtral-12b",
]
EXAMPLES = ["llama", "mistral", "mistral3", "qwen2", "qwen3"]


def read(name: str) -> ModelFiles:
    """A published configuration, or a family's example; without tensors, which would decide over it."""
    if name in EXAMPLES:
        example = Registry().architecture(ModelFiles(Path(), {"model_type": name})).example()
        assert example is not None
        return example
    return replace(published.model_files(name), tensors={})


def changed(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """As it is; with each field left out; with each field null."""
    yield "as it is", config
    paths = [(key,) for key in config]
    paths += [(key, inner) for key, value in config.items() if isinstance(value, dict) for inner in value]
    for *outer, last in paths:
        if last in ("model_type", "architectures"):
            continue
        for how in ("left out", "null"):
            new = copy.deepcopy(config)
            place = new[outer[0]] if outer else new
            if how == "null":
                place[last] = None
            else:
                del place[last]
            yield f"{'.'.join((*outer, last))} {how}", new


def expanded(config: dict[str, Any]) -> dict[str, Any] | None:
    """Every field that transformers' configuration class has; None where it refuses."""
    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    except Exception:  # whatever its validation raises
        return None
    parts = {key: getattr(made, key).to_dict() for key in ("text_config", "vision_config") if hasattr(made, key)}
    return json.loads(json.dumps({**made.to_dict(), **parts}, default=str))


def spec_of(files: ModelFiles, config: dict[str, Any]) -> ModelSpec | None:
    """Without the ids that end an answer: a class's default for them is no knowledge of this model's."""
    changed_files = replace(files, config=config)
    try:
        found = open_files(changed_files, Registry()).spec
    except SpecError:
        return None
    return replace(found, eos=(), decoder=replace(found.decoder, tied=False))  # (the tensors decide over tied)


@pytest.mark.parametrize("name", [*NAMES, *EXAMPLES])
def test_what_is_left_out_or_null_is_what_transformers_makes_of_it(name: str) -> None:
    files, differences = read(name), []
    for change, config in changed(json.loads(json.dumps(files.config))):
        theirs = expanded(config)
        if theirs is None:
            continue
        ours, oracle = spec_of(files, config), spec_of(files, theirs)
        # Widths that the weights' shapes confirm anyway may be left out here, where transformers' own do not fit.
        if oracle is not None and ours != oracle:
            differences.append((change, _difference(ours, oracle)))
    assert not differences


def _difference(ours: object, theirs: object) -> object:
    if not (dataclasses.is_dataclass(ours) and dataclasses.is_dataclass(theirs)):
        return (ours, theirs) if ours != theirs else None
    pairs = {f.name: (getattr(ours, f.name), getattr(theirs, f.name, None)) for f in dataclasses.fields(ours)}
    return {name: _difference(*pair) for name, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize(
    ("name", "change", "positions"),
    [
        ("mistral", {}, 512),
        ("mistral", {"max_position_embeddings": 32768, "sliding_window": 300}, 300),
        ("mistral", {"max_position_embeddings": 32768, "sliding_window": None}, 32768),
        ("qwen2", {"sliding_window": 8}, 512),  # (not asked for)
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, 8),
        ("llama", {"sliding_window": 8}, 512),  # (the class has none)
    ],
)
def test_a_sliding_window_bounds_the_context(name: str, change: dict[str, Any], positions: int) -> None:
    files = read(name)
    config = {**files.config, **change}
    found = spec_of(files, config)
    assert found is not None
    assert found.max_positions == positions


def test_a_missing_window_of_mistral_is_4096() -> None:
    files = read("mistral")
    config = {k: v for k, v in files.config.items() if k != "sliding_window"} | {"max_position_embeddings": 32768}
    found = spec_of(files, config)
    assert found is not None
    assert found.max_positions == 4096


@pytest.mark.parametrize(
    ("generation", "top", "text", "ends"),
    [
        ({"eos_token_id": [7, 8]}, {}, {"eos_token_id": 7}, (7, 8)),
        ({"eos_token_id": None}, {"eos_token_id": 9}, {}, (9,)),
        ({}, {"eos_token_id": None}, {"eos_token_id": [5]}, (5,)),
        ({"eos_token_id": 7}, {"eos_token_id": 8}, {"eos_token_id": 9}, (7, 8, 9)),
    ],
)
def test_ends_are_added_up(generation: dict, top: dict, text: dict, ends: tuple[int, ...]) -> None:
    files = read("llava-1.5-7b-hf")
    config: dict[str, Any] = {**json.loads(json.dumps(files.config)), **top}
    config["text_config"] |= text
    made = replace(files, config=config, generation=generation)
    assert open_files(made, Registry()).spec.eos == ends
