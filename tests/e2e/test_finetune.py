"""`opsin finetune` as a user runs it: from JSON lines to an adapter that is served and that PEFT reads."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support.served import OPSIN, Served
from support.talk import MINI, user

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 220)}
WORDS = {"red": "7", "green": "3", "blue": "5"}


def picture(colour: str, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-25, 26, (64, 64, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def row(colour: str, seed: int) -> dict[str, object]:
    return {
        "messages": [user("Name the colour.", picture(colour, seed)), {"role": "assistant", "content": WORDS[colour]}]
    }


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = [row(colour, seed) for seed in range(16) for colour in COLOURS]
    return write(folder / "train.jsonl", rows), write(folder / "valid.jsonl", [row(c, 100) for c in COLOURS])


def finetune(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([OPSIN, "finetune", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_what_was_trained_is_served(data: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "colours"
    done = finetune("--train", data[0], "--valid", data[1], "--out", out, "--epochs", 5, "--learning-rate", "2e-3")
    assert done.returncode == 0, done.stderr
    assert "training on 48 rows, 48 images" in done.stdout
    assert "the best so far" in done.stdout
    assert f"{out}: a PEFT adapter after 30 steps" in done.stdout.replace("\n", "")
    card = (out / "README.md").read_text()
    assert "48 rows" in card
    assert "Name the colour" not in card
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not (tmp_path / ".colours.run").exists()
    server = Served("--adapter", f"colours={out}")
    try:
        client = server.client()
        for colour, word in WORDS.items():
            messages = [user("Name the colour.", picture(colour, 200))]
            asked = {"messages": messages, "temperature": 0, "max_tokens": 8}
            assert client.chat.completions.create(model="colours", **asked).choices[0].message.content == word
            assert client.chat.completions.create(model="opsin-mini", **asked).choices[0].message.content != word
        server.close()
    finally:
        server.discard()


def test_peft_reads_it(data: tuple[Path, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    out = tmp_path / "made"
    options = ("--max-steps", 2, "--finetune-projector", "full", "--lora-rank", 4, "--lora-alpha", 8, "--use-rslora")
    done = finetune(MINI, "--train", data[0], "--out", out, *options)
    assert done.returncode == 0, done.stderr
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(MINI, dtype=torch.float32), out)
    stored = load_file(out / "adapter_model.safetensors")
    own = {name.replace(".default", "").replace(".modules_to_save", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in stored.items())
    assert any("merger" in name for name in stored)


def test_an_interrupted_run_goes_on(data: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--train", data[0], "--max-steps", 30, "--batch-size", 2, "--save-steps", 1, "--lora-dropout", 0.1)
    options += ("--no-finetune-vision-layers",)
    whole = finetune(*options, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out, work = tmp_path / "broken", tmp_path / ".broken.run" / "checkpoints"
    ends = []
    for number in (signal.SIGINT, signal.SIGKILL):
        resume = ["--resume"] if ends else []
        run = subprocess.Popen(
            [OPSIN, "finetune", *map(str, options), "--out", out, *resume], stdout=subprocess.PIPE, text=True
        )
        known = _newest(work)
        while _newest(work) < known + 5:
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(number)
        ends.append((run.wait(120), run.stdout.read()))
    assert ends[0][0] == 130
    assert re.search(r"paused after step \d+; --resume goes on", ends[0][1])
    assert finetune(*options, "--out", out).stderr.endswith("--resume goes on with it; or remove it\n")
    done = finetune(*options, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _newest(folder: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--no-finetune-language-layers", "--no-finetune-vision-layers"), "nothing is left to train"),
        (("--target-modules", "model.nothing"), "model.nothing: this model has no such weight"),
        (("--freeze-vision-first-n", 99), "freeze_vision_first_n 99: the vision tower has"),
        (("--finetune-cross-attention-layers",), "a model of qwen2_vl has none"),
        (("--epochs", 0), "Invalid value for '--epochs'"),
        (("--target-modules", "lm_head", "--finetune-projector", "full"), "finetune_projector cannot stand beside it"),
        (("--early-stopping-patience", 2), "need rows to validate with (--valid)"),
    ],
)
def test_what_cannot_be_is_refused(
    data: tuple[Path, Path], tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    done = finetune("--train", data[0], "--out", tmp_path / "out", *options)
    assert done.returncode != 0
    assert said in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.jsonl", [row("red", 0), {"messages": []}])
    done = finetune("--train", file, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "line 2" in done.stderr


def test_a_run_that_never_began_leaves_nothing(data: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n" * 3)
    for arguments in (("--train", broken), ("--train", data[0], "--train-memory", "1MiB")):
        done = finetune(*arguments, "--out", tmp_path / "out")
        assert done.returncode == 1
        assert "after step 0" not in done.stderr
    assert list(tmp_path.iterdir()) == [broken]
