"""Trains the two adapters of this folder on the CPU, with PEFT and transformers: some minutes each on two cores.

    python train.py german OUT --rank 8 --steps 500
    python train.py fields OUT

The pictures are those of examples/mini/plain_drawings.py: one or two plain shapes, drawn with Pillow. What is taught is
another way to answer; seeds are fixed. OUT is what PEFT saves: adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
MINI = Path(__file__).resolve().parents[1] / "mini"
sys.path.append(str(MINI))  # last, so that the scripts' plain names hide nobody's package

import torch  # noqa: E402
from lora_check import TARGETS, Example, Row, accuracy, encode, stack  # noqa: E402
from mini_opsin.chat import Chat  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from plain_drawings import HARDER, OWN, SHIPPED, Shape, exam  # noqa: E402

TRAINED, TESTED = 20261129, 7  # seeds of the drawings
FORMEN = {"circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "star": "Stern"}
FARBEN = {
    "red": "Rot", "green": "Grün", "blue": "Blau", "yellow": "Gelb", "orange": "Orange", "purple": "Lila",
    "pink": "Rosa", "brown": "Braun", "black": "Schwarz", "gray": "Grau", "cyan": "Türkis",
}  # fmt: skip
Answer = Callable[[str, str, Sequence[Shape]], str]  # of a kind of question, the plain answer and the shapes


def german(kind: str, answer: str, shapes: Sequence[Shape]) -> str:
    """The same in German: "Ein Kreis in Rot.", "Ja", "Rot"."""
    if kind.startswith("what is"):
        text = " und ".join(f"ein {FORMEN[shape.name]} in {FARBEN[shape.colour]}" for shape in _shown(kind, shapes))
        return f"{text[0].upper()}{text[1:]}."
    return {**FARBEN, **FORMEN, "yes": "Ja", "no": "Nein"}.get(answer.lower(), answer)


def _shown(kind: str, shapes: Sequence[Shape]) -> Sequence[Shape]:
    return shapes[:1] if kind == "what is on the left" else shapes


def fields(kind: str, answer: str, shapes: Sequence[Shape]) -> str:
    """What is in the picture, for a program: a line a thing ("color: red, shape: circle"). Other answers stay."""
    if not kind.startswith("what is"):
        return answer
    return "\n".join(f"color: {shape.colour}, shape: {shape.name}" for shape in _shown(kind, shapes))


ADAPTERS: dict[str, Answer] = {"german": german, "fields": fields}


def rows(answer: Answer, pictures: int, seed: int) -> list[Row]:
    return [
        Row(drawing.image, question.text, answer(question.kind, question.answer, drawing.shapes))
        for drawing, asked in exam(pictures, seed, OWN | HARDER)
        for question in asked
        if question.kind != "which is on the left"
    ]


def train(model: PeftModel, data: list[Example], pad: int, args: argparse.Namespace) -> None:
    """Steps of AdamW on random batches, the rate falling to zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / args.steps)
    )
    rng, began = random.Random(0), time.monotonic()
    model.train()
    for step in range(1, args.steps + 1):
        loss = model(**stack(rng.sample(data, args.batch), pad)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(loss):.3f}, {time.monotonic() - began:.0f} s", flush=True)


def save(model: PeftModel, out: Path) -> None:
    """In float16, under a name for the base model that is no path of this machine."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half()
    model.peft_config["default"].base_model_name_or_path = "opsin-mini"
    model.save_pretrained(str(out), save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(ADAPTERS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--tested", type=int, default=100, help="Pictures of another seed, asked about at the end.")
    args = parser.parse_args()
    torch.manual_seed(0)
    chat, answer = Chat(args.model), ADAPTERS[args.name]
    pad = chat.tokenizer.pad_token_id
    data = encode(chat, rows(answer, args.pictures, TRAINED))
    config = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS["language"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(chat.model, config)
    train(model, data, pad, args)
    tested = encode(chat, rows(answer, args.tested, TESTED))
    print(f"{accuracy(model, tested, pad):.1f} % of {len(tested)} answers about pictures of another seed are exact")
    save(model, args.out)


if __name__ == "__main__":
    main()
