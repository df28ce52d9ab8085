"""Pairs of a language model's GGUF and its mmproj file, as llama.cpp's converters write them from a published model
(Qwen2VLModel and LlamaModel of its conversion package; the towers are in mmproj_layouts)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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


def write_pair(folder: Path, theirs: Any, kinds: Mapping[str, Kind] | None = None, template: str | None = None) -> Pair:
    """kinds: of tensors, by parts of their names in the files; F32 where none is said. The model's numbers become what
    the files mean. template: the chat template in the decoder's file."""
    folder.mkdir(parents=True, exist_ok=True)
    layout, kinds = LAYOUTS[tiny.family_of(theirs)], kinds or {}
    with torch.no_grad():
        round_parts([*language_parts(theirs, layout), *layout.parts(theirs)], kinds)
    model = _write_decoder(folder / "model.gguf", theirs, layout, kinds, template)
    return Pair(theirs, model, write_mmproj(folder / "mmproj-model.gguf", theirs, kinds))


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


def _write_decoder(path: Path, theirs: Any, layout: Layout, kinds: Mapping[str, Kind], template: str | None) -> Path:
    writer, text = GGUFWriter(path, layout.architecture), _text(theirs)
    add_sizes(writer, text)
    if sections := text.rope_parameters.get("mrope_section"):
        writer.add_rope_dimension_sections([*sections, 0])
    add_byte_pairs(writer, text.vocab_size, COMMON | dict(layout.special), layout.pre)
    if template is not None:
        writer.add_chat_template(template)
    add_parts(writer, language_parts(theirs, layout), kinds)
    if text.rope_parameters["rope_type"] == "llama3":
        add_tensor(writer, "rope_freqs.weight", _rope_factors(theirs, text), Kind.F32)
    finish(writer)
    return path


def _rope_factors(theirs: Any, text: Any) -> Tensor:
    """By which llama.cpp divides frequencies: what transformers' parameters come to."""
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    plain = 1.0 / (text.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size))
    return plain / theirs.model.text_model.rotary_emb.inv_freq


def write_mmproj(path: Path, theirs: Any, kinds: Mapping[str, Kind] | None = None) -> Path:
    layout = LAYOUTS[tiny.family_of(theirs)]
    writer = GGUFWriter(path, "clip")
    layout.fields(writer, theirs.config)
    for add, numbers in zip(
        (writer.add_vision_image_mean, writer.add_vision_image_std), layout.normalization, strict=True
    ):
        add(list(numbers))
    add_parts(writer, layout.parts(theirs), kinds or {})
    finish(writer)
    return path
