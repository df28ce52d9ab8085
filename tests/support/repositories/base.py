"""What the repositories of the supported families have in common: a description of one, and published files with tiny
figures."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.published import CONFIGS
from support.repositories.words import Words

Json = dict[str, Any]


CLIP_MEAN = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
STEPS = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
FROM_MODEL = {"_from_model_config": True, "transformers_version": "4.46.0"}
EVERY_ROLE = ("system", "user", "assistant")
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Repository:
    """A repository by its name on the Hub.

    family: of support.tiny, which has the published names of its weights. words: its tokenizer. config: config.json;
    empty where there is none. files: all the others but weights. ends, sampling: what must be read from all of these.
    shards: numbered files of weights; 0 is a single one, None is none. consolidated: whether weights in Mistral's own
    form are there. processor: transformers' class, None for a tokenizer alone. strings: roles whose content the
    template wants as one string. options: of `--model-option`, under which answers equal transformers'.
    """

    name: str
    family: str
    words: Words
    config: Json
    files: Mapping[str, Any]
    ends: tuple[str, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)
    shards: int | None = 2
    consolidated: bool = False
    processor: str | None = None
    strings: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


def form(name: str, file: str = "config.json", **figures: Any) -> Json:
    """A published file with other figures: a mapping changes the section of that name."""
    return changed(json.loads((CONFIGS / name / file).read_text()), figures)


def changed(document: Json, figures: Mapping[str, Any]) -> Json:
    document = copy.deepcopy(document)
    for key, value in figures.items():
        inner = document.get(key)
        is_section = isinstance(inner, dict) and isinstance(value, Mapping)
        document[key] = changed(inner, value) if is_section else value
    return document


def about(*more: str) -> Json:
    """What every repository has for people."""
    return {name: f"{name}\n" for name in (".gitattributes", "README.md", *more)}
