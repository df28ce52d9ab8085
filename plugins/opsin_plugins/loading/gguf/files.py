"""A GGUF as ModelFiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opsin_plugins.loading.gguf.container import Container
from opsin_plugins.loading.gguf.decoder import decoder_config, decoder_tensors, end_ids
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.loading.gguf.mmproj import Mmproj, read_mmproj
from opsin_plugins.loading.gguf.packing import tensor_info
from opsin_plugins.loading.gguf.parts import read_whole
from opsin_plugins.spec import ModelFiles, SpecError, TensorInfo

TOKENS = ("bos", "eos", "unknown", "padding")
SEEING = ("qwen2vl",)  # architectures that no language model alone has
BLIND = "it is served without pictures: these need its vision tower, --mmproj FILE"


def read_gguf(path: Path, options: Mapping[str, str] | None = None, mmproj: Path | None = None) -> ModelFiles:
    """mmproj: the file with the vision tower; None: the language model alone. Raises SpecError."""
    container = read_whole(path)
    said, text = Fields(container), decoder_config(container)
    files = ModelFiles(
        directory=path,
        config=text,
        generation={"eos_token_id": end_ids(said)},
        tokenizer_config=_tokenizer_config(said),
        chat_template=said.maybe("tokenizer.chat_template"),
        tensors=decoder_tensors(container, text),
        stored=_stored(container),
        options=options or {},
        notes=(BLIND,) if mmproj is None and said.text("general.architecture") in SEEING else (),
    )
    return files if mmproj is None else _with_vision(files, container, read_mmproj(mmproj))


def _with_vision(files: ModelFiles, container: Container, vision: Mmproj) -> ModelFiles:
    decoder = decoder_tensors(container, files.config, vision.projector.language)
    there = {*container.tensors, *decoder}  # (a name of the decoder's must not come from the tower's file)
    if twice := next((name for name in (*vision.container.tensors, *vision.half.tensors) if name in there), None):
        raise SpecError(f"{twice} is in both {container.path} and {vision.container.path}")
    return replace(
        files,
        config=vision.config(container, files.config),
        preprocessor=vision.half.preprocessor,
        tensors={**decoder, **vision.half.tensors},
        stored={**files.stored_tensors, **_stored(vision.container)},
    )


def _stored(container: Container) -> dict[str, TensorInfo]:
    return {name: tensor_info(stored) for name, stored in container.tensors.items()}


def _tokenizer_config(said: Fields) -> dict[str, Any]:
    """bos_token and so on, as chat templates call them."""
    tokens = said.items("tokenizer.ggml.tokens")
    names = {"unknown": "unk_token", "padding": "pad_token"}
    found: dict[str, Any] = {}
    for name in TOKENS:
        number = said.maybe(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[names.get(name, f"{name}_token")] = tokens[number]
    return found
