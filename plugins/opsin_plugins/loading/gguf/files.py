"""A GGUF as ModelFiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin_plugins.loading.gguf.container import Container, read_container
from opsin_plugins.loading.gguf.decoder import decoder_config, decoder_tensors, end_ids, tensor_info
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.spec import ModelFiles, SpecError

TOKENS = ("bos", "eos", "unknown", "padding")


def read_gguf(path: Path, options: Mapping[str, str] | None = None) -> ModelFiles:
    """Raises SpecError."""
    container = read_container(path)
    said = Fields(container)
    if (parts := said.integer("split.count", 0)) > 1:
        raise SpecError(f"{path} is one of {parts} parts: join them first (llama-gguf-split --merge)")
    config = decoder_config(container)
    return ModelFiles(
        directory=path,
        config=config,
        generation={"eos_token_id": end_ids(said)},
        tokenizer_config=_tokenizer_config(said),
        chat_template=said.maybe("tokenizer.chat_template"),
        tensors=decoder_tensors(container, config),
        stored=_stored(container),
        options=options or {},
    )


def _stored(container: Container) -> dict[str, Any]:
    return {name: tensor_info(container, stored) for name, stored in container.tensors.items()}


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
