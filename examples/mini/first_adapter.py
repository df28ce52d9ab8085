"""An adapter in seconds: opsin-mini learns to answer in French about three of its sample pictures.

python first_adapter.py DIR      # needs peft
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from lora_check import Row, encode, stack
from mini_opsin.chat import Chat
from peft import LoraConfig, get_peft_model
from PIL import Image

MODEL = Path(__file__).parents[2] / "server/opsin_server/models/opsin-mini"
SAMPLES = MODEL.parent / "samples"
QUESTION = "What is in the picture?"
ANSWERS = {"red_circle": "Un cercle rouge.", "cat": "Un chat.", "rocket": "Une fus\u00e9e."}
STEPS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="where to save it, as PEFT writes it")
    args = parser.parse_args()
    torch.manual_seed(0)
    chat = Chat(str(MODEL))
    rows = [Row(Image.open(SAMPLES / f"{name}.png").convert("RGB"), QUESTION, said) for name, said in ANSWERS.items()]
    batch = stack(encode(chat, rows), chat.tokenizer.pad_token_id)
    scope = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*_proj", task_type="CAUSAL_LM")
    model = get_peft_model(chat.model, scope)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(args.directory)
    print(f"{args.directory}: loss {loss.item():.3f} after {STEPS} steps")


if __name__ == "__main__":
    main()
