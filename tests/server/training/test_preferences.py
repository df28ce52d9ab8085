"""DPO: the closed form over PEFT's model with its adapter on and off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.objectives import Preference
from opsin_server.engine.training.peft_form import peft_tensors
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_events import Evaluated, StepDone
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import MEMORY, Base, Example, LocalRows, PeftTwin, base, drive, example, shape_of

BETA = 0.3


def pairs(found: Base, count: int) -> list[Example]:
    """Two answers of different lengths to the same pictures, one behind the other."""
    rows = []
    for n in range(count):
        pictures = [(24, 32)] * (n % 3)
        rows += [
            example(found.ours, 5 * n, 14 + n, pictures, labels=4),
            example(found.ours, 5 * n, 17 + n, pictures, labels=7),
        ]
    return rows


def log_likelihood(twin: PeftTwin, one: Example) -> Tensor:
    return -twin.losses(one).sum()


def closed_form(twin: PeftTwin, rows: list[Example]) -> tuple[Tensor, float]:
    """The mean loss of the pairs, and how many are in order."""
    margins = []
    for better, worse in zip(rows[::2], rows[1::2], strict=True):
        with torch.no_grad(), twin.model.disable_adapter():
            reference = log_likelihood(twin, better) - log_likelihood(twin, worse)
        margins.append(BETA * (log_likelihood(twin, better) - log_likelihood(twin, worse) - reference))
    found = torch.stack(margins)
    return -F.logsigmoid(found).mean(), float((found > 0).float().mean())


@pytest.mark.parametrize("head", [False, True], ids=["", "with a trained head"])
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_losses_and_weights_are_the_closed_forms(family: str, head: bool, tmp_path: Path) -> None:
    found = base(family, tmp_path / "model")
    rows, steps = pairs(found, 3), 4
    modules = found.of("vision", "language", "cross") + (("lm_head",) if head else ())
    found.modules["lm_head"] = "language.head"
    settings = TrainingSettings(
        modules=modules, rank=4, method="dpo", beta=BETA, learning_rate=2e-3, vision_rate=1.0, max_steps=steps,
        batch_size=3, schedule="constant", micro_batch_tokens=64,
    )  # fmt: skip
    run = Trainer(found.trained, settings, Halved(rows, rows), tmp_path / "run", MemoryPool(MEMORY), shape_of(rows, 2))
    twin = PeftTwin(found, run.trainee)
    drive(run.run())
    run.close()
    order = [run.order.rows_of(step) for step in range(steps)]
    for event, numbers in zip((e for e in run.events if isinstance(e, StepDone)), order, strict=True):
        asked = [rows[2 * n + i] for n in numbers for i in range(2)]
        loss, accuracy = closed_form(twin, asked)
        assert event.loss == pytest.approx(loss.item(), abs=1e-4)
        assert event.accuracy == pytest.approx(accuracy, abs=0.01) or event.step == 1  # (at first all margins are 0)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in twin.model.parameters() if p.requires_grad], 1.0)
        assert event.norm == pytest.approx(norm.item(), rel=2e-3, abs=1e-4)
        twin.optimizer.step()
        twin.optimizer.zero_grad()
    theirs = twin.tensors()
    for name, tensor in peft_tensors(run.trainee, None).items():
        assert torch.allclose(tensor, theirs[name], atol=2e-3), name
    evaluated = [e for e in run.events if isinstance(e, Evaluated)][-1]
    with torch.no_grad():
        loss, accuracy = closed_form(twin, rows)
    assert evaluated.loss == pytest.approx(loss.item(), abs=1e-3)
    assert evaluated.accuracy == accuracy


class Halved(LocalRows):
    """Counts pairs."""

    def count(self, split: Any) -> int:
        return super().count(split) // 2


def test_weights_are_the_gradient_of_the_score() -> None:
    torch.manual_seed(0)
    counts = [3, 5, 2, 2]
    losses = torch.rand(sum(counts), requires_grad=True)
    asked = Preference(counts, torch.randn(4).double(), BETA, 2)
    (-F.logsigmoid(asked.margins(losses)).mean()).backward()
    assert torch.allclose(asked.weights(losses.detach()), losses.grad, atol=1e-6)
    assert asked.weights(losses.detach() * 1e6).isfinite().all()
