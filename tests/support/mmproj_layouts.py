"""What llama.cpp's converters write of a vision tower, family by family: fields, and what becomes of tensors.

Sources: its conversion package (MmprojModel, LlavaVisionModel, SmolVLMModel, Qwen2VLVisionModel); the `gguf` package's
own table for names; for LLaVA-1.5, which that converter does not take, convert_image_encoder_to_gguf of
tools/mtmd/legacy-models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, GGUFType, GGUFWriter, VisionProjectorType, get_tensor_name_map
from torch import Tensor

from opsin_plugins.families.image_processors import CLIP_MEAN, CLIP_STD, HALF
from support import tiny
from support.gguf_files import Part

QWEN = {150: "<|image_pad|>", 151: "<|video_pad|>", 152: "<|vision_start|>", 153: "<|vision_end|>"}
QWEN |= {154: "<|im_start|>", 155: "<|im_end|>"}
EPS = 1e-6  # where a Qwen's configuration names none
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
    writer.add_vision_attention_layernorm_eps(EPS)


def _qwen2_5_fields(writer: GGUFWriter, config: Any) -> None:
    vision = config.vision_config
    _shared(writer, config, vision.depth, vision.num_heads, vision.intermediate_size, 560, vision.hidden_size)
    writer.add_clip_projector_type(VisionProjectorType.QWEN25VL)
    writer.add_vision_use_silu(True)
    writer.add_vision_n_wa_pattern(vision.fullatt_block_indexes[0] + 1)
    writer.add_vision_attention_layernorm_eps(EPS)


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
_PIXTRAL = ("language_model.", MISTRAL, "tekken", _pixtral_parts, _pixtral_fields)
LAYOUTS: Mapping[str, Layout] = {
    "llava": Layout("llama", "language_model.", {150: "<image>"}, "llama-bpe", _llava_parts, _llava_fields),
    "qwen2_vl": Layout(*_QWEN, _qwen2_fields),
    "qwen2_5_vl": Layout(*_QWEN, _qwen2_5_fields),
    "idefics3": Layout(*_SMALL),
    "smolvlm": Layout(*_SMALL),
    "llava.pixtral": Layout("llama", *_PIXTRAL),
    "mistral3": Layout("mistral3", *_PIXTRAL),
}
