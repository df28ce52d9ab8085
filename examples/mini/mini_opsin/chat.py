"""Asks an exported model through transformers alone: the path of every number that is called 'generated'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from mini_opsin.loading import load_model, load_tokenizer

PAD, PLACEHOLDER = "<|image_pad|>", "<|placeholder|>"


class Chat:
    """Tokenizer and image processor are combined by hand: AutoProcessor needs torchvision for its video half."""

    def __init__(self, path: str | Path) -> None:
        self.tokenizer, self.model = load_tokenizer(path), load_model(path)
        self.images = AutoImageProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]

    def inputs(self, messages: list[dict[str, Any]], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model takes; each image becomes as many pads as it has visual tokens."""
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        out: dict[str, Tensor] = {}
        if images:
            seen = self.images(images=[i.convert("RGB") for i in images], return_tensors="pt")
            out = {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}
            for grid in seen["image_grid_thw"]:
                text = text.replace(PAD, PLACEHOLDER * (int(grid.prod()) // 4), 1)
            text = text.replace(PLACEHOLDER, PAD)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            out["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return out

    @torch.no_grad()
    def ask(self, question: str, *images: Image.Image, max_new_tokens: int = 48) -> str:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        inputs = self.inputs([{"role": "user", "content": content}], images)
        out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return str(self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
