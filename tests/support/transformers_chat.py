"""opsin-mini through transformers alone: its tokenizer and template, its PIL image processor, its model, its generate.

The processor is put together by hand: AutoProcessor wants torchvision, for video only.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PAD, PLACEHOLDER = "<|image_pad|>", "<|placeholder|>"


@dataclass
class Answer:
    text: str
    prompt_tokens: int
    image_tokens: int
    tokens: list[int]
    logprobs: Tensor  # F32 [tokens, vocab]: of every token that could have stood there


class TransformersChat:
    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)
        self.directory = directory
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(directory)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()

    @cached_property
    def plain(self) -> Tokenizer:
        """The same vocabulary without added tokens: every string is text."""
        document = json.loads((self.directory / "tokenizer.json").read_text())
        document["added_tokens"] = []
        return Tokenizer.from_str(json.dumps(document))

    def rendered(self, messages: list[dict[str, Any]]) -> tuple[str, list[Image.Image]]:
        """The template's text, and the pictures that stand in it."""
        pictures = []
        turns = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                parts = []
                for part in content:
                    if part["type"] == "image_url":
                        pictures.append(_picture(part["image_url"]["url"]))
                        parts.append({"type": "image"})
                    else:
                        parts.append(part)
                content = parts
            role = "system" if message["role"] == "developer" else message["role"]
            turns.append({"role": role, "content": content})
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text, pictures

    def inputs(self, messages: list[dict[str, Any]]) -> dict[str, Tensor]:
        text, pictures = self.rendered(messages)
        seen: dict[str, Tensor] = {}
        if pictures:
            seen = dict(self.images(images=pictures, return_tensors="pt"))
            for grid in seen["image_grid_thw"]:
                text = text.replace(PAD, PLACEHOLDER * (int(grid.prod()) // self.images.merge_size**2), 1)
            text = text.replace(PLACEHOLDER, PAD)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if pictures:
            seen["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **seen}

    @torch.no_grad()
    def ask(self, messages: list[dict[str, Any]], max_tokens: int) -> Answer:
        """Greedy."""
        inputs = self.inputs(messages)
        prompt = inputs["input_ids"][0]
        out = self.model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        tokens = out.sequences[0, len(prompt) :].tolist()
        return Answer(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
            prompt_tokens=len(prompt),
            image_tokens=int((prompt == self.model.config.image_token_id).sum()),
            tokens=tokens,
            logprobs=torch.cat(out.logits).float().log_softmax(-1),
        )


def _picture(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
