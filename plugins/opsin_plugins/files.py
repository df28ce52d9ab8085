"""Reads a checkpoint directory into ModelFiles: configurations and tensor headers, never weights, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from opsin_plugins.spec import ModelFiles, SpecError, TensorInfo

MAX_JSON_BYTES = 64 * 2**20  # a tokenizer of 256k entries takes 30 MB; nothing honest is larger
INDEX = "model.safetensors.index.json"
MISTRAL_PARAMS = "mistral_params"
# Tensors alone, never code: what torch reads with weights_only is copied shard by shard.
CONVERT = (
    "import glob, torch, safetensors.torch as s; [s.save_file({k: v.clone() for k, v in torch.load(f, mmap=True, "
    "weights_only=True).items()}, f[:-3] + 'safetensors', {'format': 'pt'}) for f in glob.glob('pytorch_model*.bin')]"
)
UNREADABLE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


def read_model_files(directory: Path, options: Mapping[str, str] | None = None) -> ModelFiles:
    """options: of the family, see ModelFiles. Raises SpecError when the directory is no checkpoint, or has its weights
    in a form that is not read."""
    if not directory.is_dir():
        raise SpecError(f"{directory} is not a directory (nothing is downloaded: fetch the checkpoint first)")
    config = _config(directory)
    template = directory / "chat_template.jinja"
    tokenizer_config = read_json(directory / "tokenizer_config.json")
    written = template.read_text("utf-8") if template.is_file() else _template_of(directory, tokenizer_config)
    return ModelFiles(
        directory=directory,
        config=config,
        preprocessor=read_json(directory / "preprocessor_config.json"),
        generation=read_json(directory / "generation_config.json"),
        tokenizer_config=tokenizer_config,
        chat_template=written,
        tensors=read_tensors(directory),
        options=options or {},
    )


def _config(directory: Path) -> Mapping[str, object]:
    """config.json; or params.json, Mistral's own, which names no model_type."""
    params = directory / "params.json"
    if not (directory / "config.json").is_file() and params.is_file():
        return {"model_type": MISTRAL_PARAMS, **read_json(params)}
    return read_json(directory / "config.json", required=True)


def read_json(path: Path, *, required: bool = False) -> Mapping[str, object]:
    if not path.is_file():
        if required:
            raise SpecError(f"{path.parent} has no {path.name}")
        return {}
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise SpecError(f"{path} has {size} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _template_of(directory: Path, tokenizer_config: Mapping[str, object]) -> str | None:
    """Older repositories keep the chat template in chat_template.json or in the tokenizer's configuration."""
    for source in (read_json(directory / "chat_template.json"), tokenizer_config):
        value = source.get("chat_template")
        if isinstance(value, str):
            return value
        if isinstance(value, list):  # named templates: the default one
            for entry in value:
                if isinstance(entry, dict) and entry.get("name") == "default":
                    return str(entry["template"])
    return None


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor's file, type and shape, from the headers of all shards."""
    shards = sorted(directory.glob("*.safetensors"))
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise SpecError(f"{directory / INDEX} has no weight_map")
        shards = [_inside(directory, str(name)) for name in sorted(set(weight_map.values()))]
    if not shards:
        other = next((p.name for glob in UNREADABLE for p in sorted(directory.glob(glob))), None)
        if other:
            raise SpecError(
                f"{other}: only safetensors are read, since other formats can run code when loaded. Convert the files "
                f'where you trust them, in their folder: python -c "{CONVERT}"'
            )
        raise SpecError(f"{directory} has no *.safetensors")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for key, info in _header(shard).items():
            if key in tensors:
                raise SpecError(f"{key} is in both {tensors[key].file.name} and {shard.name}")
            tensors[key] = info
    return tensors


def _inside(directory: Path, name: str) -> Path:
    path = directory / name
    if Path(name).name != name or not path.is_file():
        raise SpecError(f"{INDEX} names {name!r}, which is no file of {directory}")
    return path


def _header(shard: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(shard, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return {k: TensorInfo(shard, s.get_dtype(), tuple(s.get_shape())) for k, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise SpecError(f"{shard}: {error} (is the download complete?)") from error
