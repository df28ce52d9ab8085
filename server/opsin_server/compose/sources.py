"""The two halves of a LLaVA: what each directory gives of configuration and of tensors, under LLaVA's own names.

A vision encoder is found by what the registered ones claim (`EncoderSpec`), a language model by its model_type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opsin_plugins.families.config_fields import section
from opsin_plugins.families.language import TEXT, is_tied
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import Config, ModelFiles, Rename, SpecError, TowerSpec, VisionEncoder
from opsin_plugins.spec.weight_rules import name_pattern

# Of a configuration: about the directory that it came from, or its code, which is never run.
FOREIGN = ("_name_or_path", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")
BUFFERS = ("rotary_emb.inv_freq",)  # that old checkpoints saved
TOWER = "vision_tower."


@dataclass(frozen=True)
class Half:
    """config: its section of a LLaVA's config.json. names: LLaVA's name of each tensor that is taken, to its own."""

    files: ModelFiles
    config: Mapping[str, object]
    names: Mapping[str, str]


@dataclass(frozen=True)
class VisionHalf(Half):
    """tower: as the encoder's own configuration has it, all layers of it."""

    encoder: VisionEncoder
    tower: TowerSpec


def read_encoder(directory: Path, registry: Registry) -> VisionHalf:
    """The tower that a registered encoder claims; a text encoder beside it, projections and a pooling head stay
    behind."""
    files = _read("--vision", directory)
    encoder, config, whole = _claimed(files, registry)
    claims = encoder.claims
    left_out = [name_pattern(name) for name in claims.left_out]
    names = {}
    for key in files.tensors:
        if whole and not key.startswith(claims.prefix):
            continue
        bare = key.removeprefix(claims.prefix)
        if not any(pattern.fullmatch(bare) for pattern in left_out):
            names[f"{TOWER}{claims.prefix}{bare}"] = key
    try:
        tower = encoder.spec(config, files.preprocessor)
    except Exception as error:  # a stranger's code may raise anything
        what = str(error) if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
        raise SpecError(f"--vision {directory}: {what}") from error
    half = VisionHalf(files, config, names, encoder, tower)
    _check_positions(half)
    return half


def _claimed(files: ModelFiles, registry: Registry) -> tuple[VisionEncoder, Config, bool]:
    """The encoder, its configuration as a LLaVA will have it, and whether the directory holds more than the tower."""
    kind, vision = str(files.config.get("model_type")), files.config.get("vision_config")
    inner = str(vision.get("model_type")) if isinstance(vision, Mapping) else ""
    alone, part = registry.find_encoder(kind), registry.find_encoder(kind, part=True)
    encoder = alone or part
    if encoder is None or encoder.claims.not_composed:
        refused = encoder or registry.find_encoder(inner)
        why = refused.claims.not_composed if refused is not None else ""
        said = f"--vision {files.directory}: model_type {kind!r} is not taken{f' ({why})' if why else ''}"
        there = f"there are {', '.join(_composable(registry))}"
        raise SpecError("; ".join([said, there, *registry.broken_encoders()]))
    types = encoder.claims.model_types
    if alone is None:
        source, kind = section(files.config, "vision_config"), inner if inner in types else types[0]
    else:
        source = files.config
    kept = {key: value for key, value in source.items() if key not in FOREIGN}
    return encoder, {**kept, "model_type": kind, **encoder.claims.without_left_out}, alone is None


def _composable(registry: Registry) -> list[str]:
    claims = [encoder.claims for encoder in registry.encoders() if not encoder.claims.not_composed]
    return sorted(kind for one in claims for kind in (*one.checkpoint_types, *one.model_types))


def _check_positions(half: VisionHalf) -> None:
    """The table of positions belongs to one grid: named here, since later it is one shape among hundreds."""
    prefix, tower = TOWER + half.encoder.claims.prefix, half.tower
    rules = [rule for rule in half.encoder.weights(tower, prefix) if isinstance(rule, Rename)]
    table = next((half.names.get(rule.source) for rule in rules if rule.target == "vision.positions"), None)
    if table is None or not tower.positions or not (shape := half.files.tensors[table].shape):
        return
    if shape[0] != tower.positions:
        side = math.isqrt(tower.positions - tower.class_token)
        size = half.config.get("image_size", side * tower.patch)
        token = " and the class token" if tower.class_token else ""
        raise SpecError(
            f"--vision {half.files.directory}: {table} has {shape[0]} rows, but image_size {size} in patches of "
            f"{tower.patch} needs {tower.positions} ({side} x {side}{token})"
        )


def read_language(directory: Path) -> Half:
    """A Llama, Mistral or Qwen as it is published."""
    files = _read("--language", directory)
    kind = files.config.get("model_type")
    if kind not in TEXT:
        raise SpecError(f"--language {directory}: model_type {kind!r} is not taken; there are {', '.join(TEXT)}")
    if "quantization_config" in files.config:
        raise SpecError(f"--language {directory}: it is quantized (quantization_config), which cannot be kept")
    config = {key: value for key, value in files.config.items() if key not in FOREIGN}
    config["tie_word_embeddings"] = tied = is_tied(files, config)
    names = {
        f"language_model.{key}": key
        for key in files.tensors
        if not key.endswith(BUFFERS) and not (tied and key == "lm_head.weight")
    }
    return Half(files, config, names)


def _read(flag: str, directory: Path) -> ModelFiles:
    try:
        return read_model_files(directory)
    except SpecError as error:
        raise SpecError(f"{flag} {error}") from error
