"""SmolVLM, the first release and the second, and Idefics3."""

from __future__ import annotations

from typing import Any

from support.repositories import templates
from support.repositories.base import DECODER, FROM_MODEL, STEPS, Repository, about, changed, form
from support.repositories.llama import LLAMA_ENDS, LLAMA_ROPE, llama_words
from support.repositories.qwen import BPE_FILES
from support.repositories.words import Words, byte_level

PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SMOL_MARKS = ["<global-img>", *PLACES, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
SMOL_NAMES = {
    "add_prefix_space": False,
    "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    "bos_token": "<|im_start|>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<end_of_utterance>",
    "legacy": False,
    "model_max_length": 8192,
    "pad_token": "<|im_end|>",
    "processor_class": "Idefics3Processor",
    "tokenizer_class": "GPT2Tokenizer",
    "truncation_side": "left",
    "unk_token": "<|endoftext|>",
    "vocab_size": 49152,
}
SMOL_FILES = (*BPE_FILES, "added_tokens.json", "special_tokens_map.json")
SMOL_TILES = {"max_image_size": {"longest_edge": 16}, "size": {"longest_edge": 32}}
SMOL_TOWER = {"hidden_size": 32, "image_size": 16, "intermediate_size": 48, "num_attention_heads": 2}
SMOL_TOWER |= {"num_hidden_layers": 2, "patch_size": 4, "size": {"longest_edge": 32}}


def smol_words(**names: Any) -> Words:
    front = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    return byte_level(SMOL_MARKS, {**SMOL_NAMES, **names}, front=front, pattern=None, files=SMOL_FILES)


def smolvlm_1() -> Repository:
    words = smol_words()
    text = {**DECODER, "head_dim": 16, "vocab_size": words.size + 20}
    config = form(
        "SmolVLM-256M-Instruct",
        image_token_id=words["<image>"],
        scale_factor=2,
        text_config={**text, "pixel_shuffle_factor": 2},
        vision_config=SMOL_TOWER,
        vocab_size=words.size + 20,
    )
    generation = {"bos_token_id": 1, "eos_token_id": words["<end_of_utterance>"], "pad_token_id": 2}
    files = {
        "chat_template.json": {"chat_template": templates.SMOLVLM},
        "generation_config.json": {**FROM_MODEL, **generation},
        "preprocessor_config.json": form("SmolVLM-256M-Instruct", "preprocessor_config.json", **SMOL_TILES),
        "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
        "onnx/vision_encoder.onnx": b"\x08\x08",
        "onnx/decoder_model_merged_q4.onnx": b"\x08\x08",
        **about(),
    }
    return Repository(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "idefics3",
        words,
        config,
        files,
        ("<end_of_utterance>", "<|im_end|>"),
        shards=0,
        processor="Idefics3Processor",
    )


def smolvlm_2() -> Repository:
    named = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    named |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    words = smol_words(**named, extra_special_tokens=named, processor_class="SmolVLMProcessor")
    smol = smolvlm_1()
    config = changed(
        smol.config,
        {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "text_config": {"architectures": ["VLlama3ForCausalLM"]},
            "vision_config": {"model_type": "smolvlm_vision"},
            "transformers_version": "4.47.1",
        },
    )
    pictures = {**STEPS, "do_image_splitting": True, "do_pad": True, **SMOL_TILES, "resample": 1}
    pictures |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    pictures |= {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}
    videos = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
    files = {
        **{name: value for name, value in smol.files.items() if not name.startswith("onnx/")},
        "preprocessor_config.json": {**pictures, "video_sampling": videos},
        "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
    }
    return Repository(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "smolvlm",
        words,
        config,
        files,
        smol.ends,
        shards=0,
        processor="SmolVLMProcessor",
    )


def idefics3() -> Repository:
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *PLACES]
    names = {"eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    words = llama_words(*marks, **names, processor_class="Idefics3Processor")
    ends = [words[text] for text in LLAMA_ENDS]
    text = {**DECODER, "rope_scaling": LLAMA_ROPE, "vocab_size": words.size, "eos_token_id": ends}
    text |= {"bos_token_id": words["<|begin_of_text|>"], "pad_token_id": words["<|finetune_right_pad_id|>"]}
    # (tiles have 364 pixels where the settings do not say)
    vision = {**SMOL_TOWER, "image_size": 364, "patch_size": 26}
    config = form(
        "Idefics3-8B-Llama3",
        image_token_id=words["<image>"],
        scale_factor=7,
        text_config=text,
        vision_config=vision,
    )
    generation = {"bos_token_id": words["<|begin_of_text|>"], "eos_token_id": ends}
    pictures = form("Idefics3-8B-Llama3", "preprocessor_config.json", size={"longest_edge": 728})
    files = {
        "chat_template.json": {"chat_template": templates.IDEFICS3},
        "generation_config.json": {**FROM_MODEL, **generation},
        "preprocessor_config.json": pictures,
        "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
        **about(),
    }
    return Repository(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "idefics3",
        words,
        config,
        files,
        (*LLAMA_ENDS, "<end_of_utterance>"),
        shards=3,
        processor="Idefics3Processor",
    )
