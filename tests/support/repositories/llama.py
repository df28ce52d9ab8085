"""Meta's repositories: Llama 3.2 Vision, and a language model."""

from __future__ import annotations

from typing import Any

from support.repositories import templates
from support.repositories.base import DECODER, EVERY_ROLE, Json, Repository, about, form
from support.repositories.words import GPT4, Words, byte_level

LLAMA_MARKS = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>"]
LLAMA_MARKS += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
LLAMA_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
LLAMA_ROPE = {"factor": 8.0, "original_max_position_embeddings": 64}
LLAMA_NAMES = {
    "bos_token": "<|begin_of_text|>",
    "clean_up_tokenization_spaces": True,
    "eos_token": "<|eot_id|>",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 131072,
    "pad_token": "<|finetune_right_pad_id|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def llama_words(*more: str, **names: Any) -> Words:
    return byte_level(
        [*LLAMA_MARKS, *more],
        {**LLAMA_NAMES, **names},
        pattern=GPT4,
        opens_with="<|begin_of_text|>",
        files=("special_tokens_map.json",),
    )


def llama_generation(words: Words) -> Json:
    ends = [words[text] for text in LLAMA_ENDS]
    pad = words["<|finetune_right_pad_id|>"]
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    return {"bos_token_id": words["<|begin_of_text|>"], "eos_token_id": ends, "pad_token_id": pad, **sampling}


def llama_vision() -> Repository:
    words = llama_words("<|image|>", chat_template=templates.LLAMA_VISION)
    ends = [words[text] for text in LLAMA_ENDS]
    text = {**DECODER, "num_hidden_layers": 5, "cross_attention_layers": [1, 3], "rope_scaling": LLAMA_ROPE}
    text |= {"vocab_size": words["<|image|>"], "bos_token_id": words["<|begin_of_text|>"], "eos_token_id": ends}
    text |= {"pad_token_id": words["<|finetune_right_pad_id|>"]}
    vision = {"hidden_size": 32, "attention_heads": 2, "intermediate_size": 48, "image_size": 20, "patch_size": 4}
    vision |= {"num_hidden_layers": 3, "num_global_layers": 2, "intermediate_layers_indices": [0, 2]}
    vision |= {"vision_output_dim": 96}
    config = form(
        "Llama-3.2-11B-Vision-Instruct",
        image_token_index=words["<|image|>"],
        text_config=text,
        vision_config=vision,
    )
    pictures = form("Llama-3.2-11B-Vision-Instruct", "preprocessor_config.json", size={"height": 20, "width": 20})
    files = {
        "chat_template.json": {"chat_template": templates.LLAMA_VISION},
        "generation_config.json": llama_generation(words),
        "preprocessor_config.json": pictures,
        "original/consolidated.pth": b"PK\3\4",
        "original/params.json": {"dim": 4096, "n_layers": 40},
        "original/tokenizer.model": b"AA== 0\n",
        **about("LICENSE.txt", "USE_POLICY.md"),
    }
    return Repository(
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        "mllama",
        words,
        config,
        files,
        LLAMA_ENDS,
        {"temperature": 0.6, "top_p": 0.9},
        shards=3,
        processor="MllamaProcessor",
        strings=("system",),
        options={"tokens_before_image": "all"},
    )


def llama() -> Repository:
    words = llama_words(chat_template=templates.LLAMA)
    ends = [words[text] for text in LLAMA_ENDS]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": words["<|begin_of_text|>"],
        "eos_token_id": ends,
        **DECODER,
        "head_dim": 16,
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**LLAMA_ROPE, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": words.size + 20,
    }
    files = {
        "generation_config.json": llama_generation(words),
        "original/consolidated.00.pth": b"PK\3\4",
        "original/params.json": {"dim": 2048, "n_layers": 16},
        **about("LICENSE.txt", "USE_POLICY.md"),
    }
    sampling = {"temperature": 0.6, "top_p": 0.9}
    return Repository(
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama",
        words,
        config,
        files,
        LLAMA_ENDS,
        sampling,
        shards=0,
        strings=EVERY_ROLE,
    )
