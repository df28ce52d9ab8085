"""Reads a checkpoint directory into ModelFiles: configurations and tensor headers, never weights, never code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsin_plugins.loading.chat_templates import find_chat_template
from opsin_plugins.loading.gguf.container import is_gguf
from opsin_plugins.loading.gguf.files import read_gguf
from opsin_plugins.loading.quantized.read import weights_of
from opsin_plugins.loading.read_json import read_json, read_text
from opsin_plugins.loading.weight_files import find_weights, mistrals_form
from opsin_plugins.spec import ModelFiles, SpecError

MISTRAL_PARAMS = "mistral_params"
CONFIGURATIONS = ("config.json", "params.json")


def read_model_files(
    directory: Path, options: Mapping[str, str] | None = None, mmproj: Path | None = None
) -> ModelFiles:
    """options: of the family, see ModelFiles. Raises SpecError when the directory is no checkpoint, or has its weights
    in a form that is not read. A GGUF is one as well, though it is no directory; mmproj: the GGUF of its tower."""
    if is_gguf(directory):
        return read_gguf(directory, options, mmproj)
    _check_directory(directory)
    if mmproj is not None:
        raise SpecError(f"--mmproj {mmproj} goes with a GGUF, and {directory} is a directory, which has its own tower")
    processor, tokenizer_config = (read_json(directory / f"{n}_config.json") for n in ("processor", "tokenizer"))
    config, stem = _config(directory, processor)
    weights = find_weights(directory, stem)
    return ModelFiles(
        directory=directory,
        config=config,
        preprocessor=_image_processor(directory, processor),
        video_preprocessor=_video_processor(directory, processor),
        generation=read_json(directory / "generation_config.json"),
        tokenizer_config=tokenizer_config,
        chat_template=find_chat_template(directory, processor, tokenizer_config, vision=has_vision(config)),
        tensors=weights_of(config, weights.tensors),
        stored=weights.tensors,
        options=options or {},
        ignored=weights.ignored,
    )


def has_vision(config: Mapping[str, object]) -> bool:
    return any(key in config for key in ("vision_config", "visual", "vision_encoder"))


def _check_directory(directory: Path) -> None:
    if directory.suffix == ".gguf" and not directory.exists():
        raise SpecError(f"{directory} is not there (nothing is downloaded: fetch the checkpoint first)")
    if not directory.is_dir():
        raise SpecError(f"{directory} is not a directory (nothing is downloaded: fetch the checkpoint first)")
    if not any((directory / name).exists() for name in CONFIGURATIONS) and (snapshots := _snapshots(directory)):
        raise SpecError(f"{directory} is an entry of the Hub's cache: give its snapshot, {snapshots[0]}")
    if not any((directory / name).exists() for name in CONFIGURATIONS) and (files := sorted(directory.glob("*.gguf"))):
        raise SpecError(f"{directory} has no config.json, but GGUF files: give one of them, as {files[0]}")


def _snapshots(entry: Path) -> list[Path]:
    """Of an entry in the Hub's cache: its checkpoints, the one that it calls main first."""
    main = entry / "refs" / "main"
    current = read_text(main).strip() if main.is_file() else ""
    found = {path.parent for name in CONFIGURATIONS for path in entry.glob(f"snapshots/*/{name}")}
    return sorted(found, key=lambda snapshot: (snapshot.name != current, snapshot.name))


def _config(directory: Path, processor: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """What config.json says, and what the weights' files are called. Or params.json, Mistral's own, which names no
    model_type: where there is no config.json, where only weights of that form are there, or where only that form says
    how pictures are prepared (Mistral Small 3.2)."""
    params, path = directory / "params.json", directory / "config.json"
    if not params.is_file():
        return read_json(path, required=True), "model"
    config, own = read_json(path), mistrals_form(directory)
    blind = has_vision(config) and _image_processor(directory, processor) is None
    if not config or own == "alone" or (own == "too" and blind):
        return {"model_type": MISTRAL_PARAMS, **read_json(params)}, "consolidated"
    return config, "model"


def _image_processor(directory: Path, processor: Mapping[str, object]) -> Mapping[str, object] | None:
    """The image processor's settings: within processor_config.json, where transformers 5 saves them, else in a file of
    their own; None where neither is there."""
    return _settings(directory, processor, "image_processor", "preprocessor_config.json")


def _video_processor(directory: Path, processor: Mapping[str, object]) -> Mapping[str, object] | None:
    """As the image processor's. Where neither is there, transformers reads the image processor's file."""
    return _settings(directory, processor, "video_processor", "video_preprocessor_config.json")


def _settings(directory: Path, processor: Mapping[str, object], section: str, file: str) -> Mapping[str, object] | None:
    nested = processor.get(section)
    if isinstance(nested, Mapping):
        return nested
    if nested is not None:
        raise SpecError(f"{directory / 'processor_config.json'}: {section} is no object: {nested!r:.100}")
    path = directory / file
    return read_json(path) if path.is_file() else None
