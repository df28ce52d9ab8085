"""Pairs of a language model's GGUF and its mmproj file, as llama.cpp's converters write them from a published model.

Sources: llama.cpp's conversion package (MmprojModel, LlavaVisionModel, SmolVLMModel, Qwen2VLVisionModel) for fields and
for what becomes of tensors; the `gguf` package's own table for their names; for LLaVA-1.5, which that converter does
not take, convert_image_encoder_to_gguf of tools/mtmd/legacy-models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFType, GGUFWriter, VisionProjectorType, get_tensor_name_map
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from opsin_plugins.families.image_processors import CLIP_MEAN, CLIP_STD, HALF
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

COMMON = {0: "<unk>", 1: "<s>", 2: "</s>"}
QWEN = {150: "<|image_pad|>", 151: "<|video_pad|>", 152: "<|vision_start|>", 153: "<|vision_end|>"}
QWEN |= {154: "<|im_start|>", 155: "<|im_end|>"}
MISTRAL = {150: "[IMG]", 151: "[IMG_BREAK]", 152: "[IMG_END]", 153: "[INST]", 154: "[/INST]"}
IDEFICS = {150: "<image>", 151: "<fake_token_around_image>", 152: "<global-img>", 153: "<end_of_utterance>"}
LEGACY = (
    (r"^vision_tower\.vision_model\.", "v."),
    (r"^multi_modal_projector\.linear_1", "mm.0"),
    (r"^multi_modal_projector\.linear_2", "mm.2"),
    (r"encoder\.layers\.", "blk."),
    (r"embeddings\.(class|patch|position)_embedding", r"\1_embd"),
    (r"self_attn\.(q|k|v|out)_proj", r"attn_\1"),
    (r"layer_norm", "ln"),
    (r"pre_layrnorm", "pre_ln"),
    (r"mlp\.fc1", "ffn_down"),  # (the wrong way round, as published)
    (r"mlp\.fc2", "ffn_up"),
)


@dataclass(frozen=True)
class Pair:
    """Files, and what `--mmproj` says. theirs: the model whose numbers they hold."""

    theirs: Any
    model: Path
    mmproj: Path


@dataclass(frozen=True)
class Layout:
    """Of a family. language: what its names have more than those that its language model has alone. special: tokens.
    parts: of its tower and projector. fields: what the file says of them."""

    architecture: str
    language: str
    special: Mapping[int, str]
    pre: str
    parts: Callable[[Any], Iterator[Part]]
    fields: Callable[[GGUFWriter, Any], None]
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = (CLIP_MEAN, CLIP_STD)


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


def _shared(writer: GGUFWriter, config: Any, layers: int, heads: int, mlp: int, side: int, width: int) -> None:
    """What the converter's base class writes of every tower."""
    vision = config.vision_config
    writer.add_type(GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_size(side)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(mlp)
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(heads)


def _plain(writer: GGUFWriter, config: Any) -> None:
    v = config.vision_config
    _shared(
        writer, config, v.num_hidden_layers, v.num_attention_heads, v.intermediate_size, v.image_size, v.hidden_size
    )


def _mapped(theirs: Any, prefixes: tuple[str, ...]) -> Iterator[tuple[str, str, Tensor]]:
    """Name in the file, published name, numbers; of tensors that begin so."""
    names = get_tensor_name_map(MODEL_ARCH.MMPROJ, 64)
    for name, tensor in tiny.named(theirs).items():
        if name.startswith(prefixes):
            own = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert own is not None, name
            yield own, name, tensor


# --------------------------------------------------------------------------------------------- LLaVA-1.5


def _llava_fields(writer: GGUFWriter, config: Any) -> None:
    """The layers past the feature that is taken are left out; projection_dim is CLIP's own."""
    vision, taken = config.vision_config, _llava_layers(config)
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_projection_dim(vision.projection_dim)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_block_count(taken)
    writer.add_array("clip.vision.feature_layer", [taken])
    writer.add_vision_use_gelu(vision.hidden_act == "gelu")


def _llava_layers(config: Any) -> int:
    return config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer


def _llava_parts(theirs: Any) -> Iterator[Part]:
    for name, tensor in tiny.named(theirs).items():
        layer = re.search(r"encoder\.layers\.(\d+)", name)
        past = layer is not None and int(layer[1]) >= _llava_layers(theirs.config)
        if not name.startswith(("vision_tower.", "multi_modal_projector.")) or past or "post_layernorm" in name:
            continue
        for pattern, new in LEGACY:
            name = re.sub(pattern, new, name)
        yield Part(name, tensor)


# --------------------------------------------------------------------------------------------- Qwen2-VL, Qwen2.5-VL


def _qwen2_fields(writer: GGUFWriter, config: Any) -> None:
    """feed_forward_length is what the published configuration calls hidden_size: the decoder's width."""
    vision = config.vision_config
    _shared(writer, config, vision.depth, vision.num_heads, vision.hidden_size, 560, vision.embed_dim)
    writer.add_clip_projector_type(VisionProjectorType.QWEN2VL)
    writer.add_vision_attention_layernorm_eps(config.text_config.rms_norm_eps)


def _qwen2_5_fields(writer: GGUFWriter, config: Any) -> None:
    vision = config.vision_config
    _shared(writer, config, vision.depth, vision.num_heads, vision.intermediate_size, 560, vision.hidden_size)
    writer.add_clip_projector_type(VisionProjectorType.QWEN25VL)
    writer.add_vision_use_silu(True)
    writer.add_vision_n_wa_pattern(vision.fullatt_block_indexes[0] + 1)
    writer.add_vision_attention_layernorm_eps(config.text_config.rms_norm_eps)


def _qwen_parts(theirs: Any) -> Iterator[Part]:
    for own, name, tensor in _mapped(theirs, ("visual.",)):
        if ".qkv." in name:
            for one, numbers in zip("qkv", tensor.chunk(3), strict=True):
                yield Part(own.replace("attn_qkv", f"attn_{one}"), numbers)
        elif "patch_embed.proj.weight" in name:
            yield Part("v.patch_embd.weight", tensor[:, :, 0])
            yield Part("v.patch_embd.weight.1", tensor[:, :, 1])
        else:
            yield Part(own, tensor)


# --------------------------------------------------------------------------------------------- Idefics3, SmolVLM


def _idefics_fields(writer: GGUFWriter, config: Any) -> None:
    _plain(writer, config)
    writer.add_clip_projector_type(VisionProjectorType.IDEFICS3)
    writer.add_vision_attention_layernorm_eps(config.vision_config.layer_norm_eps)
    writer.add_vision_projector_scale_factor(config.scale_factor)
    writer.add_vision_use_gelu(True)
    writer.add_vision_preproc_image_size(tiny.FAMILIES["idefics3"].preprocessor["size"]["longest_edge"])


def _idefics_parts(theirs: Any) -> Iterator[Part]:
    for own, _, tensor in _mapped(theirs, ("model.vision_model.", "model.connector.")):
        yield Part(own, tensor)


# --------------------------------------------------------------------------------------------- Pixtral, Mistral Small


def _pixtral_fields(writer: GGUFWriter, config: Any) -> None:
    _plain(writer, config)
    writer.add_clip_projector_type(VisionProjectorType.PIXTRAL)
    writer.add_vision_attention_layernorm_eps(1e-5)
    (writer.add_vision_use_silu if config.vision_config.hidden_act == "silu" else writer.add_vision_use_gelu)(True)
    if (merge := getattr(config, "spatial_merge_size", None)) is not None:
        writer.add_vision_spatial_merge_size(merge)


def _pixtral_parts(theirs: Any) -> Iterator[Part]:
    """Queries and keys are turned as a Llama's are; the row of [IMG_BREAK] is there once more."""
    heads = theirs.config.vision_config.num_attention_heads
    for own, name, tensor in _mapped(theirs, ("vision_tower.", "multi_modal_projector.")):
        yield Part(own, tensor, heads if name.endswith(("q_proj.weight", "k_proj.weight")) else None)
    breaks = next(number for number, text in MISTRAL.items() if text == "[IMG_BREAK]")
    yield Part("v.token_embd.img_break", tiny.named(theirs)["language_model.model.embed_tokens.weight"][breaks])


_QWEN = ("qwen2vl", "", QWEN, "qwen2", _qwen_parts)
_SMALL = ("llama", "text_model.", IDEFICS, "smollm", _idefics_parts, _idefics_fields, (HALF, HALF))
_PIXTRAL = ("llama", "language_model.", MISTRAL, "tekken", _pixtral_parts, _pixtral_fields)
LAYOUTS: Mapping[str, Layout] = {
    "llava": Layout("llama", "language_model.", {150: "<image>"}, "llama-bpe", _llava_parts, _llava_fields),
    "qwen2_vl": Layout(*_QWEN, _qwen2_fields),
    "qwen2_5_vl": Layout(*_QWEN, _qwen2_5_fields),
    "idefics3": Layout(*_SMALL),
    "smolvlm": Layout(*_SMALL),
    "llava.pixtral": Layout(*_PIXTRAL),
    "mistral3": Layout(*_PIXTRAL),
}
