"""Losses, gradients and weights are those of PEFT on transformers, step for step, whatever is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.peft_form import peft_tensors
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_events import StepDone
from opsin_server.ipc.training_settings import TrainingSettings
from support import tiny
from support.training import MEMORY, RATE, Base, LocalRows, PeftTwin, base, drive, examples, shape_of

STEPS, TOLERANCE = 20, 1e-4
FAMILIES = [name for name in tiny.FAMILIES if name != "qwen"]  # (the original Qwen-VL is no model of transformers)
SEEING = [name for name in FAMILIES if tiny.FAMILIES[name].preprocessor]
ALONE = [(family, part) for family in SEEING for part in ("vision", "projector", "language")] + [("mllama", "cross")]

WHOLE = ["qwen2_vl", "qwen3_vl", "llava", "llava_next", "mistral3", "idefics3", "mllama"]


def compare(found: Base, parts: tuple[str, ...], steps: int, folder: Path, **settings: object) -> None:
    rows = examples(found.ours)
    asked = TrainingSettings(
        modules=found.of(*parts),
        rank=4,
        alpha=8,
        max_steps=steps,
        batch_size=len(rows),
        schedule="constant",
        **{"learning_rate": RATE, "vision_rate": 1.0, "projector_rate": 1.0, **settings},  # type: ignore[arg-type]
    )
    assert asked.modules or asked.full_projector, f"nothing of {parts} to train"
    trainer = Trainer(found.trained, asked, LocalRows(rows), folder, MemoryPool(MEMORY), shape_of(rows))
    twin = PeftTwin(found, trainer.trainee)
    drive(trainer.run())
    trainer.close()
    done = [event for event in trainer.events if isinstance(event, StepDone)]
    assert len(done) == steps
    for event in done:
        loss, norm = twin.step(rows)
        assert event.loss == pytest.approx(loss, abs=TOLERANCE)
        assert event.norm == pytest.approx(norm, rel=1e-3, abs=TOLERANCE)
    theirs = twin.tensors()
    ours = peft_tensors(trainer.trainee, found.trained.projector if asked.full_projector else None)
    assert ours.keys() == theirs.keys()
    assert min(event.norm for event in done) > TOLERANCE
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=TOLERANCE * steps), name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_parts_together(family: str, tmp_path: Path) -> None:
    found = base(family, tmp_path / "model")
    compare(found, ("vision", "projector", "language", "cross"), STEPS, tmp_path / "run")


@pytest.mark.parametrize(("family", "part"), ALONE)
def test_each_part_alone(family: str, part: str, tmp_path: Path) -> None:
    compare(base(family, tmp_path / "model"), (part,), 3, tmp_path / "run")


def test_a_head_that_is_trained(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    found.modules["lm_head"] = "language.head"
    compare(found, ("language",), 5, tmp_path / "run")


@pytest.mark.parametrize("family", WHOLE)
def test_a_projector_that_is_trained_whole(family: str, tmp_path: Path) -> None:
    """With LoRA of the language beside it, as the first stage of a composed model."""
    compare(base(family, tmp_path / "model"), ("language",), 4, tmp_path / "run", full_projector=True)


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "part"), ALONE)
def test_each_part_alone_for_long(family: str, part: str, tmp_path: Path) -> None:
    compare(base(family, tmp_path / "model"), (part,), STEPS, tmp_path / "run")


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rslora": True},
        {"lora_plus_ratio": 8.0},
        {"vision_rate": 0.1, "projector_rate": 0.3},
        {"weight_decay": 0.3, "learning_rate": 3e-3},
        {"max_gradient_norm": 0.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings(family: str, settings: dict[str, object], tmp_path: Path) -> None:
    compare(
        base(family, tmp_path / "model"), ("vision", "projector", "language", "cross"), 5, tmp_path / "run", **settings
    )
