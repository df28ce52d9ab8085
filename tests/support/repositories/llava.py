"""LLaVA 1.5, 1.6 on Mistral, and one with SigLIP on Qwen2."""

from __future__ import annotations

from support.repositories import templates
from support.repositories.base import DECODER, FROM_MODEL, Repository, about, form
from support.repositories.qwen import BPE_FILES, QWEN2_MARKS, QWEN_NAMES
from support.repositories.words import byte_level, sentencepiece

CLIP_TOWER = {"hidden_size": 32, "image_size": 28, "intermediate_size": 48, "num_attention_heads": 2}
CLIP_TOWER |= {"num_hidden_layers": 4, "patch_size": 7}
LLAMA2_NAMES = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "extra_special_tokens": {"image_token": "<image>"},
    "image_token": "<image>",
    "legacy": False,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "left",
    "processor_class": "LlavaProcessor",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "trust_remote_code": False,
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
LLAMA2_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer.model")
CROPS = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def llava() -> Repository:
    words = sentencepiece(["<image>", "<pad>"], LLAMA2_NAMES, files=LLAMA2_FILES)
    ids = {"image_token_index": words["<image>"], "pad_token_id": words["<pad>"], "vocab_size": words.size + 20}
    text = {**DECODER, "vocab_size": words.size + 20}
    config = form("llava-1.5-7b-hf", **ids, text_config=text, vision_config=CLIP_TOWER)
    frame = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 7}
    frame |= {"processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"}
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": words["<pad>"]}
    files = {
        "chat_template.json": {"chat_template": templates.VICUNA},
        "generation_config.json": {**FROM_MODEL, **generation},
        "preprocessor_config.json": form("llava-1.5-7b-hf", "preprocessor_config.json", **CROPS),
        "processor_config.json": frame,
        **about(),
    }
    return Repository(
        "llava-hf/llava-1.5-7b-hf", "llava", words, config, files, ("</s>",), shards=3, processor="LlavaProcessor"
    )


def llava_next() -> Repository:
    names = {**LLAMA2_NAMES, "processor_class": "LlavaNextProcessor"}
    words = sentencepiece(["<image>", "<pad>"], names, files=LLAMA2_FILES)
    points = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    ids = {"image_token_index": words["<image>"], "vocab_size": words.size + 20, "image_grid_pinpoints": points}
    text = {**DECODER, "vocab_size": words.size + 20}
    config = form("llava-v1.6-mistral-7b-hf", **ids, text_config=text, vision_config=CLIP_TOWER)
    pictures = form("llava-v1.6-mistral-7b-hf", "preprocessor_config.json", **CROPS, image_grid_pinpoints=points)
    frame = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 7}
    frame |= {"processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default"}
    files = {
        "chat_template.json": {"chat_template": templates.LLAVA_MISTRAL},
        "generation_config.json": {**FROM_MODEL, "bos_token_id": 1, "eos_token_id": 2},
        "preprocessor_config.json": pictures,
        "processor_config.json": frame,
        **about(),
    }
    return Repository(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava_next",
        words,
        config,
        files,
        ("</s>",),
        shards=4,
        processor="LlavaNextProcessor",
    )


def llava_siglip() -> Repository:
    names = {**QWEN_NAMES, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    names |= {"processor_class": "LlavaProcessor", "extra_special_tokens": {"image_token": "<image>"}}
    words = byte_level(
        [*QWEN2_MARKS[:3], "<image>"],
        {**names, "image_token": "<image>"},
        normalizer={"type": "NFC"},
        files=(*BPE_FILES, "added_tokens.json", "special_tokens_map.json"),
    )
    text = {**DECODER, "model_type": "qwen2", "vocab_size": words.size + 20, "tie_word_embeddings": True}
    text |= {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0, "sliding_window": 32768}
    text |= {"bos_token_id": words["<|endoftext|>"], "eos_token_id": words["<|im_end|>"], "max_window_layers": 24}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 16,
        "image_token_index": words["<image>"],
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "transformers_version": "4.42.0.dev0",
        "vision_config": {**CLIP_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    frame = {"image_token": "<image>", "num_additional_image_tokens": 0, "patch_size": 7}
    frame |= {"processor_class": "LlavaProcessor", "vision_feature_select_strategy": "full"}
    pictures = form("siglip-so400m-patch14-384", "preprocessor_config.json", size={"height": 28, "width": 28})
    ends = {"bos_token_id": words["<|endoftext|>"], "eos_token_id": words["<|im_end|>"]}
    files = {
        "chat_template.json": {"chat_template": templates.INTERLEAVE},
        "generation_config.json": {**FROM_MODEL, **ends},
        "preprocessor_config.json": {**pictures, "processor_class": "LlavaProcessor"},
        "processor_config.json": frame,
        **about(),
    }
    return Repository(
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "llava_siglip",
        words,
        config,
        files,
        ("<|im_end|>",),
        shards=0,
        processor="LlavaProcessor",
    )
