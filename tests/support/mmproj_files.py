"""Pairs of a language model's GGUF and its mmproj file, as llama.cpp's converters write them from a published model
(Qwen2VLModel and LlamaModel of its conversion package; the towers are in mmproj_layouts)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from torch import Tensor

from support import tiny
from support.gguf_files import (
    Part,
    add_byte_pairs,
    add_parts,
    add_published_pairs,
    add_sizes,
    add_tensor,
    decoder_parts,
    finish,
    round_parts,
)
from support.mmproj_layouts import LAYOUTS, Layout

COMMON = {0: "<unk>", 1: "<s>", 2: "</s>"}


@dataclass(frozen=True)
class Pair:
    """Files, and what `--mmproj` says. theirs: the model whose numbers they hold."""

    theirs: Any
    model: Path
    mmproj: Path


def write_pair(
    folder: Path,
    theirs: Any,
    kinds: Mapping[str, Kind] | None = None,
    template: str | None = None,
    published: Path | None = None,
) -> Pair:
    """kinds: of tensors, by parts of their names in the files; F32 where none is said. The model's numbers become what
    the files mean. template: the chat template in the decoder's file. published: a directory whose tokenizer and image
    processor the model has, instead of made-up ones."""
    folder.mkdir(parents=True, exist_ok=True)
    layout, kinds = LAYOUTS[tiny.family_of(theirs)], kinds or {}
    with torch.no_grad():
        round_parts([*language_parts(theirs, layout), *layout.parts(theirs)], kinds)
    with _writer(folder / "model.gguf", layout.architecture) as writer:
        _add_decoder(writer, theirs, layout, kinds)
        if template is not None:
            writer.add_chat_template(template)
        if published is None:
            add_byte_pairs(writer, _text(theirs).vocab_size, COMMON | dict(layout.special), layout.pre)
        else:
            add_published_pairs(writer, json.loads((published / "tokenizer.json").read_text()), layout.pre)
    processor = {} if published is None else json.loads((published / "preprocessor_config.json").read_text())
    mmproj = write_mmproj(folder / "mmproj-model.gguf", theirs, kinds, processor)
    return Pair(theirs, folder / "model.gguf", mmproj)


def language_parts(theirs: Any, layout: Layout) -> Iterator[Part]:
    state = {
        name.replace(layout.language, "", 1): tensor
        for name, tensor in tiny.named(theirs).items()
        if not re.match(r"(model\.)?(vision|visual|multi_modal|connector)", name)
    }
    return decoder_parts(_text(theirs), state, layout.architecture)


def _text(theirs: Any) -> Any:
    text = theirs.config.text_config
    text.tie_word_embeddings = theirs.config.tie_word_embeddings
    return text


@contextmanager
def _writer(path: Path, architecture: str) -> Iterator[GGUFWriter]:
    writer = GGUFWriter(path, architecture)
    yield writer
    finish(writer)


def _add_decoder(writer: GGUFWriter, theirs: Any, layout: Layout, kinds: Mapping[str, Kind]) -> None:
    text = _text(theirs)
    add_sizes(writer, text)
    if sections := text.rope_parameters.get("mrope_section"):
        writer.add_rope_dimension_sections([*sections, 0])
    add_parts(writer, language_parts(theirs, layout), kinds)
    if text.rope_parameters["rope_type"] == "llama3":
        add_tensor(writer, "rope_freqs.weight", _rope_factors(theirs, text), Kind.F32)


def _rope_factors(theirs: Any, text: Any) -> Tensor:
    """By which llama.cpp divides frequencies: what transformers' parameters come to."""
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    plain = 1.0 / (text.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size))
    return plain / theirs.model.text_model.rotary_emb.inv_freq


def write_mmproj(
    path: Path,
    theirs: Any,
    kinds: Mapping[str, Kind] | None = None,
    processor: Mapping[str, Any] | None = None,
) -> Path:
    """processor: the image processor's settings, of which limits of pixels are written where it has them."""
    layout, processor = LAYOUTS[tiny.family_of(theirs)], processor or {}
    mean, std = layout.normalization
    with _writer(path, "clip") as writer:
        layout.fields(writer, theirs.config)
        writer.add_vision_image_mean(list(processor.get("image_mean", mean)))
        writer.add_vision_image_std(list(processor.get("image_std", std)))
        if "max_pixels" in processor:
            writer.add_vision_min_pixels(processor["min_pixels"])
            writer.add_vision_max_pixels(processor["max_pixels"])
        add_parts(writer, layout.parts(theirs), kinds or {})
    return path
