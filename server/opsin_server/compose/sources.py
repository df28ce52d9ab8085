"""The two halves of a LLaVA: what each directory gives of configuration and of tensors, under LLaVA's own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opsin_plugins.families.config_fields import integer, section
from opsin_plugins.families.language import TEXT, is_tied
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import ModelFiles, SpecError

# A vision encoder's model_type, and the tower's where the directory holds a text encoder beside it.
ENCODERS = {
    "clip": "clip_vision_model",
    "clip_vision_model": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip_vision_model": "siglip_vision_model",
}
NOT_TAKEN = {
    "pixtral": "its rows end with tokens of their own, which a language model would have to learn first",
    "qwen2_vl": "no LLaVA directory has a form for a tower that joins neighbours",
}
VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
)
# Of a configuration: about the directory that it came from, or its code, which is never run.
FOREIGN = ("_name_or_path", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")
BUFFERS = ("embeddings.position_ids", "rotary_emb.inv_freq")  # that old checkpoints saved


@dataclass(frozen=True)
class Half:
    """config: its section of a LLaVA's config.json. names: LLaVA's name of each tensor that is taken, to its own."""

    files: ModelFiles
    config: Mapping[str, object]
    names: Mapping[str, str]


def read_encoder(directory: Path) -> Half:
    """CLIP's or SigLIP's tower; a text encoder beside it, projections and a pooling head stay behind."""
    files = _read("--vision", directory)
    kind = files.config.get("model_type")
    if kind not in ENCODERS:
        inner = files.config.get("vision_config")
        tower = inner.get("model_type") if isinstance(inner, Mapping) else None
        why = NOT_TAKEN.get(str(kind), NOT_TAKEN.get(str(tower), ""))
        raise SpecError(
            f"--vision {directory}: model_type {kind!r} is not taken{f' ({why})' if why else ''}; "
            f"there are {', '.join(ENCODERS)}"
        )
    whole = kind != ENCODERS[str(kind)]
    source = section(files.config, "vision_config") if whole else files.config
    config = {"model_type": ENCODERS[str(kind)], **{key: source[key] for key in VISION_FIELDS if key in source}}
    if config["model_type"] == "siglip_vision_model":
        config["vision_use_head"] = False
    names = {}
    for key in files.tensors:
        if whole and not key.startswith("vision_model."):
            continue
        bare = key.removeprefix("vision_model.")
        if not bare.startswith(("head.", "visual_projection.")) and not bare.endswith(BUFFERS):
            names[f"vision_tower.vision_model.{bare}"] = key
    _check_grid(files, config, names)
    return Half(files, config, names)


def _check_grid(files: ModelFiles, config: Mapping[str, object], names: Mapping[str, str]) -> None:
    """The table of positions belongs to one grid: named here, since later it is one shape among hundreds."""
    clip = config["model_type"] == "clip_vision_model"
    side = integer(config, "image_size", 224)
    patch = integer(config, "patch_size", 32 if clip else 16)
    if patch < 1 or side < patch or (clip and side % patch):
        raise SpecError(f"--vision {files.directory}: image_size {side} is no grid of patches of {patch}")
    table = names.get("vision_tower.vision_model.embeddings.position_embedding.weight")
    grid, token = side // patch, " and the class token" if clip else ""
    if table is not None and (rows := files.tensors[table].shape[0]) != grid**2 + clip:
        raise SpecError(
            f"--vision {files.directory}: {table} has {rows} rows, but image_size {side} in patches of {patch} needs "
            f"{grid**2 + clip} ({grid} x {grid}{token})"
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
