"""The repositories of Qwen: three generations with vision, the first of all, and two language models."""

from __future__ import annotations

from typing import Any

from support.repositories import templates
from support.repositories.base import DECODER, EVERY_ROLE, Json, Repository, about, form
from support.repositories.words import Marker, Words, byte_level, qwen_tiktoken

VISION_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
BOXES = [f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")]
QWEN2_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BOXES, *VISION_MARKS]
TOOL_MARKS = [Marker(f"<{slash}{name}>", special=False) for name in ("tool_call", "tool_response", "think")
              for slash in ("", "/")]  # fmt: skip
QWEN_NAMES = {
    "add_prefix_space": False,
    "additional_special_tokens": QWEN2_MARKS[1:],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 32768,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}
BPE_FILES = ("vocab.json", "merges.txt")
QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")


def qwen_words(*more: Marker, **names: Any) -> Words:
    return byte_level([*QWEN2_MARKS, *more], {**QWEN_NAMES, **names}, normalizer={"type": "NFC"}, files=BPE_FILES)


def qwen_ids(words: Words) -> Json:
    return {
        "bos_token_id": words["<|endoftext|>"],
        "eos_token_id": words["<|im_end|>"],
        "vision_start_token_id": words["<|vision_start|>"],
        "vision_end_token_id": words["<|vision_end|>"],
        "vision_token_id": words["<|vision_pad|>"],
        "image_token_id": words["<|image_pad|>"],
        "video_token_id": words["<|video_pad|>"],
        "vocab_size": words.size + 20,  # (rows that no token has, as published)
    }


def qwen_generation(words: Words, **sampling: Any) -> Json:
    ends = {"eos_token_id": [words["<|im_end|>"], words["<|endoftext|>"]], "pad_token_id": words["<|endoftext|>"]}
    return {"bos_token_id": words["<|endoftext|>"], "do_sample": True, **ends, **sampling}


def qwen2_vl() -> Repository:
    words = qwen_words(chat_template=templates.QWEN2_VL)
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 4}
    rope = {"mrope_section": [2, 3, 3]}
    config = form("Qwen2-VL-2B-Instruct", **DECODER, **qwen_ids(words), vision_config=vision, rope_scaling=rope)
    sampling = {"repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
    figures = {"patch_size": 4, "min_pixels": 64, "max_pixels": 64 * 36}
    files = {
        "chat_template.json": {"chat_template": templates.QWEN2_VL},
        "generation_config.json": qwen_generation(words, **sampling, transformers_version="4.37.0"),
        "preprocessor_config.json": form("Qwen2-VL-2B-Instruct", "preprocessor_config.json", **figures),
        **about("LICENSE"),
    }
    return Repository(
        "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", words, config, files, QWEN_ENDS, sampling, processor="Qwen2VLProcessor"
    )


def qwen2_5_vl() -> Repository:
    words = qwen_words(*TOOL_MARKS[:2], chat_template=templates.QWEN2_VL)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
    }
    vision |= {"fullatt_block_indexes": [1], "out_hidden_size": 64}
    rope = {"mrope_section": [2, 3, 3]}
    config = form("Qwen2.5-VL-3B-Instruct", **DECODER, **qwen_ids(words), vision_config=vision, rope_scaling=rope)
    sampling = {"repetition_penalty": 1.05, "temperature": 0.000001}
    figures = {"patch_size": 4, "min_pixels": 64, "max_pixels": 64 * 36}
    files = {
        "chat_template.json": {"chat_template": templates.QWEN2_VL},
        "generation_config.json": qwen_generation(words, **sampling, transformers_version="4.49.0"),
        "preprocessor_config.json": form("Qwen2.5-VL-3B-Instruct", "preprocessor_config.json", **figures),
        **about("LICENSE"),
    }
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    return Repository(name, "qwen2_5_vl", words, config, files, QWEN_ENDS, sampling, processor="Qwen2_5_VLProcessor")


def qwen3_vl() -> Repository:
    words = qwen_words(*TOOL_MARKS, chat_template=templates.QWEN3_VL, model_max_length=262144)
    ids = qwen_ids(words)
    text = {**DECODER, "head_dim": 16, "rope_scaling": {"mrope_section": [3, 3, 2]}}
    text |= {key: ids.pop(key) for key in ("bos_token_id", "eos_token_id", "vocab_size")}
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    del ids["vision_token_id"]
    config = form("Qwen3-VL-2B-Instruct", **ids, text_config=text, vision_config=vision)
    sampling = {"top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0}
    size = {"shortest_edge": 64, "longest_edge": 64 * 36}
    pictures = form("Qwen3-VL-2B-Instruct", "preprocessor_config.json", patch_size=4, size=size)
    videos = {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    files = {
        "chat_template.json": {"chat_template": templates.QWEN3_VL},
        "generation_config.json": qwen_generation(words, **sampling, transformers_version="4.56.0"),
        "preprocessor_config.json": pictures,
        "video_preprocessor_config.json": {**pictures, **videos},
        **about(),
    }
    return Repository(
        "Qwen/Qwen3-VL-2B-Instruct",
        "qwen3_vl",
        words,
        config,
        files,
        QWEN_ENDS,
        sampling,
        shards=0,
        processor="Qwen3VLProcessor",
    )


QWEN_VL_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
QWEN_VL_MARKS += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]


def qwen_vl() -> Repository:
    maps = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    words = qwen_tiktoken(
        QWEN_VL_MARKS, {"auto_map": maps, "model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}
    )
    visual = {"heads": 2, "image_size": 32, "image_start_id": words["<img>"], "layers": 2, "mlp_ratio": 1.5}
    visual |= {"output_dim": 64, "patch_size": 4, "width": 32, "n_queries": 16, "positions": 16, "pool_head_dim": 16}
    figures = {"hidden_size": 64, "intermediate_size": 192, "kv_channels": 16, "num_attention_heads": 4}
    figures |= {"num_hidden_layers": 3, "max_position_embeddings": 4096, "vocab_size": words.size + 20}
    end = words["<|endoftext|>"]
    generation = {"chat_format": "chatml", "eos_token_id": end, "pad_token_id": end, "max_window_size": 6144}
    sampling = {"do_sample": True, "top_k": 0, "top_p": 0.3}
    code = (
        "configuration_qwen.py",
        "modeling_qwen.py",
        "qwen_generation_utils.py",
        "tokenization_qwen.py",
        "visual.py",
    )
    files = {
        "generation_config.json": {**generation, **sampling, "max_new_tokens": 512, "transformers_version": "4.31.0"},
        "SimSun.ttf": b"\0\1\0\0",
        "assets/logo.jpg": b"\xff\xd8",
        **dict.fromkeys(code, "raise SystemExit('this must not run')\n"),
        **about("LICENSE", "NOTICE"),
    }
    return Repository(
        "Qwen/Qwen-VL-Chat",
        "qwen",
        words,
        form("Qwen-VL-Chat", **figures, visual=visual),
        files,
        ("<|endoftext|>", "<|im_end|>"),
        {"top_p": 0.3},
    )


def qwen_text(name: str, kind: str, sampling: Json, **more: Any) -> Repository:
    marks = [*QWEN2_MARKS, *TOOL_MARKS] if kind == "qwen3" else QWEN2_MARKS
    words = byte_level(
        marks, {**QWEN_NAMES, "chat_template": templates.CHATML}, normalizer={"type": "NFC"}, files=BPE_FILES
    )
    config = {
        "architectures": [f"Qwen{kind[-1]}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": words["<|endoftext|>"],
        "eos_token_id": words["<|im_end|>"],
        **DECODER,
        "hidden_act": "silu",
        "max_window_layers": 28,
        "model_type": kind,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "sliding_window": None if kind == "qwen3" else 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": words.size + 20,
        **more,
    }
    files = {"generation_config.json": qwen_generation(words, **sampling), **about("LICENSE")}
    return Repository(name, kind, words, config, files, QWEN_ENDS, sampling, shards=0, strings=EVERY_ROLE)


def qwen2() -> Repository:
    sampling = {"repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    return qwen_text("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", sampling)


def qwen3() -> Repository:
    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    return qwen_text("Qwen/Qwen3-0.6B", "qwen3", sampling, head_dim=24, attention_bias=False)
