"""Pixtral and Mistral Small 3.1, in transformers' form, in Mistral's own and in both, and a language model."""

from __future__ import annotations

from typing import Any

from support.repositories import templates
from support.repositories.base import CLIP_MEAN, DECODER, EVERY_ROLE, FROM_MODEL, STEPS, Repository, about, form
from support.repositories.words import GPT4, Words, byte_level, sentencepiece, tekken

RESERVED = 24  # ids in front of all others, of which the last have no use
NAMED = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
NAMED += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
NAMED += ["[SUFFIX]"]


def marks(*more: str) -> list[str]:
    named = [*NAMED, *more]
    return [*named, *(f"<SPECIAL_{i}>" for i in range(len(named), RESERVED))]


VERSION_3, VERSION_7 = marks(), marks("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
MISTRAL_NAMES = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": 40, "patch_size": 4}
OWN_DECODER = {"dim": 64, "n_layers": 3, "head_dim": 24, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2}
FRAME = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]", "patch_size": 4}
GENERATION = {**FROM_MODEL, "bos_token_id": 1, "eos_token_id": 2}


def mistral_words(front: list[str], **names: Any) -> Words:
    config = {**MISTRAL_NAMES, **names}
    return byte_level([], config, front=front, pattern=GPT4, opens_with="<s>", files=("special_tokens_map.json",))


def pixtral() -> Repository:
    words = mistral_words(VERSION_3, chat_template=templates.PIXTRAL)
    text = {**DECODER, "head_dim": 24, "vocab_size": words.size}
    config = form("pixtral-12b", text_config=text, vision_config={**TOWER, "head_dim": 16})
    sizes = {"size": {"longest_edge": 40}, "patch_size": {"height": 4, "width": 4}}
    files = {
        "chat_template.json": {"chat_template": templates.PIXTRAL},
        "generation_config.json": GENERATION,
        "preprocessor_config.json": form("pixtral-12b", "preprocessor_config.json", **sizes),
        "processor_config.json": {**FRAME, "processor_class": "PixtralProcessor"},
        **about(),
    }
    return Repository(
        "mistral-community/pixtral-12b",
        "llava.pixtral",
        words,
        config,
        files,
        ("</s>",),
        shards=3,
        processor="PixtralProcessor",
        strings=("system", "assistant"),
    )


def pixtral_params() -> Repository:
    words = tekken(VERSION_3, "v3")
    sizes = {**OWN_DECODER, "vocab_size": words.size, "max_position_embeddings": 4096}
    params = form("Pixtral-12B-2409", "params.json", **sizes, vision_encoder=TOWER)
    return Repository(
        "mistralai/Pixtral-12B-2409",
        "llava.pixtral",
        words,
        {},
        {"params.json": params, **about()},
        ("</s>",),
        shards=None,
        consolidated=True,
    )


def mistral_small() -> Repository:
    words = mistral_words(VERSION_7, chat_template=templates.MISTRAL_SMALL)
    own = tekken(VERSION_7, "v7")
    text = {**DECODER, "head_dim": 24, "vocab_size": words.size, "rms_norm_eps": 1e-05, "rope_theta": 1e9}
    text |= {"attention_dropout": 0.0, "hidden_act": "silu", "model_type": "mistral", "sliding_window": None}
    vision = {**TOWER, "head_dim": 16, "attention_dropout": 0.0, "hidden_act": "silu", "model_type": "pixtral"}
    vision |= {"num_channels": 3, "rope_theta": 10000.0}
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 10,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": vision,
        "vision_feature_layer": -1,
    }
    encoder = {"image_token_id": 10, "image_break_token_id": 12, "image_end_token_id": 13, "adapter_bias": False}
    encoder |= {"mm_projector_id": "patch_merge", "spatial_merge_size": 2, "add_pre_mm_projector_layer_norm": True}
    encoder |= {**TOWER, "num_channels": 3, "max_image_size": 40, "rope_theta": 10000.0}
    params = {**OWN_DECODER, "rope_theta": 1e9, "norm_eps": 1e-05, "vocab_size": words.size}
    params |= {"max_position_embeddings": 4096, "vision_encoder": encoder}
    pictures = {**STEPS, **CLIP_MEAN, "image_processor_type": "PixtralImageProcessorFast", "patch_size": 4}
    pictures |= {"processor_class": "PixtralProcessor", "resample": 3, "rescale_factor": 1 / 255}
    files = {
        **own.files,
        "SYSTEM_PROMPT.txt": "You are {name}.\n",
        "chat_template.json": {"chat_template": templates.MISTRAL_SMALL},
        "generation_config.json": GENERATION,
        "params.json": params,
        "preprocessor_config.json": {**pictures, "size": {"longest_edge": 40}},
        "processor_config.json": {**FRAME, "processor_class": "PixtralProcessor", "spatial_merge_size": 2},
        **about(),
    }
    return Repository(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistral3",
        words,
        config,
        files,
        ("</s>",),
        shards=3,
        processor="PixtralProcessor",
        consolidated=True,
    )


def mistral() -> Repository:
    names = {**MISTRAL_NAMES, "add_bos_token": True, "add_eos_token": False, "legacy": False, "pad_token": None}
    names |= {"sp_model_kwargs": {}, "spaces_between_special_tokens": False, "tokenizer_class": "LlamaTokenizer"}
    names |= {"use_default_system_prompt": False, "chat_template": templates.MISTRAL, "add_prefix_space": None}
    files_of_words = ("special_tokens_map.json", "tokenizer.model")
    words = sentencepiece(["[INST]", "[/INST]"], names, legacy=False, files=files_of_words)
    config = {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **DECODER,
        "hidden_act": "silu",
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": words.size + 20,
    }
    files = {
        "generation_config.json": GENERATION,
        "params.json": {"dim": 64, "n_layers": 3, "vocab_size": words.size},
        "tokenizer.model.v3": b"\n\x0esentencepiece",
        "consolidated.safetensors": b"(the same weights once more)",
        **about(),
    }
    return Repository(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistral", words, config, files, ("</s>",), shards=3, strings=EVERY_ROLE
    )
