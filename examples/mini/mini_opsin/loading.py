"""Loads exported models and tokenizers through transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration


def load_model(directory: str | Path) -> Qwen2VLForConditionalGeneration:
    """In fp32, ready to answer. Only safetensors are read."""
    return Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer
