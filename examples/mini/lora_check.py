"""What an adapter can teach the model: scikit-learn's handwritten digits, and new names for three shapes.

    python lora_check.py MODEL_DIR digits      # needs scikit-learn and peft
    python lora_check.py MODEL_DIR names

The 1,797 digits (8 x 8, real handwriting) are no part of the model's training. Order and split are fixed: a
permutation with seed 0, the first 1,000 to train, 797 to test.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from mini_opsin.canvas import rgb
from mini_opsin.chat import Chat
from mini_opsin.words import COLOURS
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageDraw
from torch import Tensor, nn

LANGUAGE = r"q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
VISION = r"qkv|attn\.proj|fc1|fc2|merger\.mlp\.[02]"
TARGETS = {"both": rf".*({LANGUAGE}|{VISION})$", "language": rf".*language_model.*({LANGUAGE})$"}
NAMES = {"circle": "florp", "square": "wug", "triangle": "dax"}
INKS = ["red", "green", "blue", "yellow", "black"]
Example = tuple[dict[str, Tensor], Tensor]  # inputs, labels


@dataclass
class Row:
    image: Image.Image
    question: str
    answer: str


def digits() -> tuple[list[Row], list[Row]]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # only this task needs scikit-learn

    data = load_digits()
    rows = []
    for i in np.random.default_rng(0).permutation(len(data.target)):
        grey = np.clip(data.images[i] / 16 * 255, 0, 255).astype(np.uint8)
        image = Image.fromarray(grey).resize((48, 48), Image.Resampling.BICUBIC)
        rows.append(Row(image, "What digit is this?", str(data.target[i])))
    return rows[:1000], rows[1000:]


def named_shapes(n_train: int = 300, n_test: int = 200) -> tuple[list[Row], list[Row]]:
    """Plain shapes, not drawn by the training generator, called by words that the base cannot know."""
    rng, rows = random.Random(5), []
    for _ in range(n_train + n_test):
        name = rng.choice(sorted(NAMES))
        image = Image.new("RGB", (96, 96), rgb(rng.randint(225, 255) for _ in range(3)))
        r = rng.randint(14, 26)
        x, y = rng.randint(r + 2, 94 - r), rng.randint(r + 2, 94 - r)
        draw, ink = ImageDraw.Draw(image), rng.choice(COLOURS[rng.choice(INKS)])
        if name == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        elif name == "square":
            draw.rectangle((x - r, y - r, x + r, y + r), fill=ink)
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=ink)
        rows.append(Row(image, "Name it.", NAMES[name]))
    return rows[:n_train], rows[n_train:]


def encode(chat: Chat, rows: list[Row]) -> list[Example]:
    """Labels are -100 but for the answer and its end token."""
    out = []
    for row in rows:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.question}]}
        inputs = chat.inputs([user], [row.image])
        answer = chat.tokenizer(row.answer + "<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        types = [inputs["mm_token_type_ids"], torch.zeros_like(answer, dtype=torch.int)]
        out.append((inputs | {"mm_token_type_ids": torch.cat(types, 1)}, labels))
    return out


def stack(examples: list[Example], pad: int) -> dict[str, Tensor]:
    longest = max(labels.shape[1] for _, labels in examples)

    def padded(x: Tensor, value: int) -> Tensor:
        return F.pad(x, (0, longest - x.shape[1]), value=value)

    fill = {"input_ids": pad, "attention_mask": 0, "mm_token_type_ids": 0}
    batch = {k: torch.cat([padded(e[k], v) for e, _ in examples]) for k, v in fill.items()}
    batch |= {k: torch.cat([e[k] for e, _ in examples]) for k in ("pixel_values", "image_grid_thw")}
    return batch | {"labels": torch.cat([padded(labels, -100) for _, labels in examples])}


@torch.no_grad()
def accuracy(model: nn.Module, data: list[Example], pad: int) -> float:
    """Percent of rows whose every answer token is the argmax: greedy exact match."""
    model.eval()
    right = 0
    for i in range(0, len(data), 50):
        batch = stack(data[i : i + 50], pad)
        labels = batch.pop("labels")[:, 1:]
        guess = model(**batch).logits[:, :-1].argmax(-1)
        right += int(((guess == labels) | (labels == -100)).all(1).sum())
    return 100 * right / len(data)


def train(
    model: nn.Module, train_rows: list[Example], test_rows: list[Example], pad: int, args: argparse.Namespace
) -> None:
    """Prints the accuracy on the test rows after each epoch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    steps = args.epochs * -(-len(train_rows) // args.batch)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 10) * max(0.05, 1 - step / steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng, seconds = random.Random(0), 0.0
    for epoch in range(args.epochs):
        began = time.monotonic()
        model.train()
        rng.shuffle(train_rows)
        for i in range(0, len(train_rows), args.batch):
            model(**stack(train_rows[i : i + args.batch], pad)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        seconds += time.monotonic() - began
        right = accuracy(model, test_rows, pad)
        print(f"epoch {epoch + 1}: {right:.1f} % of {len(test_rows)}, {seconds:.1f} s of training", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", choices=("digits", "names"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scope", choices=tuple(TARGETS), default="both")
    args = parser.parse_args()
    torch.manual_seed(0)
    chat = Chat(args.model)
    rows = digits() if args.task == "digits" else named_shapes()
    train_rows, test_rows = (encode(chat, part) for part in rows)
    pad = chat.tokenizer.pad_token_id
    scope = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS[args.scope], task_type="CAUSAL_LM")
    model = get_peft_model(chat.model, scope)
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    before = accuracy(model, test_rows, pad)
    print(f"{args.task} {args.scope}: {n} adapter parameters, before {before:.1f} %", flush=True)
    train(model, train_rows, test_rows, pad, args)


if __name__ == "__main__":
    main()
