"""PEFT on transformers, as one would write it: the rows of a training file, the same steps as `opsin finetune` makes.

python vision_peft.py MODEL TRAIN VALID OUT --epochs 8 ...
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import no_video
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup

WARMUP = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "valid", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--vision-learning-rate", type=float, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    no_video.install()
    processor = AutoProcessor.from_pretrained(given.model)  # type: ignore[no-untyped-call]
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32)
    modules = [
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ("language_model" in name or ".blocks." in name)
    ]  # fmt: skip
    peft = get_peft_model(model, LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=modules))
    train, valid = (list(_rows(processor, file)) for file in (given.train, given.valid))
    steps = given.epochs * -(-len(train) // given.batch_size)
    vision = [p for n, p in peft.named_parameters() if p.requires_grad and ".visual." in n]
    language = [p for n, p in peft.named_parameters() if p.requires_grad and ".visual." not in n]
    groups = [
        {"params": language, "lr": given.learning_rate},
        {"params": vision, "lr": given.vision_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    best = float("inf")
    for _ in range(given.epochs):
        peft.train()
        for batch in _batches(processor, [train[i] for i in torch.randperm(len(train)).tolist()], given.batch_size):
            peft(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_([*vision, *language], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss = _evaluated(peft.eval(), _batches(processor, valid, given.batch_size))
        if loss < best:
            best = loss
            peft.save_pretrained(given.out)


def _rows(processor: Any, file: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """The prompt, all of the text, and the picture."""
    for line in file.read_text().splitlines():
        messages = json.loads(line)["messages"]
        picture, question = messages[0]["content"]
        parts = [{"type": "image"}, {"type": "text", "text": question["text"]}]
        asked = [{"role": "user", "content": parts}]
        encoded = picture["image_url"]["url"].partition(",")[2]
        image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        prompt = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = processor.apply_chat_template([*asked, messages[1]], tokenize=False)
        yield prompt, whole, image


def _batches(processor: Any, rows: Sequence[tuple[str, str, Image.Image]], size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(rows), size):
        prompts, texts, images = zip(*rows[start : start + size], strict=True)
        batch = processor(text=list(texts), images=list(images), return_tensors="pt", padding=True)
        asked = processor(text=list(prompts), images=list(images), return_tensors="pt", padding=True)
        learned = torch.arange(batch["input_ids"].shape[1]) >= asked["attention_mask"].sum(1)[:, None]
        end = batch["attention_mask"].sum(1)[:, None] - 1  # (the newline behind the last turn is not learned)
        learned &= torch.arange(batch["input_ids"].shape[1]) < end
        yield {**batch, "labels": batch["input_ids"].masked_fill(~learned, -100)}


@torch.no_grad()
def _evaluated(model: Any, batches: Iterator[dict[str, Tensor]]) -> float:
    losses = [(model(**batch).loss.item(), int((batch["labels"] != -100).sum())) for batch in batches]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


if __name__ == "__main__":
    main()
