"""Training on from an adapter: it is where the run starts, and of preferences the reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from opsin_plugins.loading.published_projector import PublishedProjector
from opsin_server.engine.training.checkpoint_files import WEIGHTS
from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.peft_form import peft_tensors, take_peft_tensors
from opsin_server.engine.training.trained_model import TrainingFailed
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_events import StepDone, TrainingEnded
from opsin_server.ipc.training_settings import START, TrainingSettings
from support import tiny
from support.training import MEMORY, Base, Example, LocalRows, PeftTwin, base, drive, example, examples, shape_of

ALL = ("vision", "projector", "language", "cross")
FAMILIES = [name for name in tiny.FAMILIES if name != "qwen"]


def settings(found: Base, **changes: Any) -> TrainingSettings:
    defaults = {
        "modules": found.of("vision", "language", "cross"), "rank": 4, "alpha": 6.0, "learning_rate": 3e-3,
        "vision_rate": 1.0, "batch_size": 2, "max_steps": 4, "schedule": "constant", "micro_batch_tokens": 64,
    }  # fmt: skip
    return TrainingSettings(**{**defaults, **changes})


def trainer(found: Base, rows: list[Example], folder: Path, asked: TrainingSettings, together: int = 1) -> Trainer:
    source = LocalRows(rows) if together == 1 else Halved(rows)
    return Trainer(found.trained, asked, source, folder, MemoryPool(MEMORY), shape_of(rows, together))


class Halved(LocalRows):
    """Counts pairs."""

    def count(self, split: Any) -> int:
        return super().count(split) // 2


def trained(found: Base, rows: list[Example], folder: Path, asked: TrainingSettings) -> Path:
    """The adapter that a run has made."""
    run = trainer(found, rows, folder, asked)
    drive(run.run())
    run.close()
    (end,) = [event for event in run.events if isinstance(event, TrainingEnded)]
    return Path(end.checkpoint) / WEIGHTS


def start_of(folder: Path, adapter: Path) -> None:
    (folder / START).mkdir(parents=True)
    save_file(load_file(adapter), folder / START / WEIGHTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_taken_as_it_was_given(family: str, tmp_path: Path) -> None:
    found = base(family, tmp_path / "model")
    full = isinstance(found.trained.projector, PublishedProjector) and bool(found.trained.projector.modules)
    modules = found.of("vision", "language", "cross") if full else found.of(*ALL)
    asked = settings(found, modules=modules, full_projector=full)
    run = trainer(found, examples(found.ours), tmp_path / "run", asked)
    published = found.trained.projector if full else None
    assert not isinstance(published, str)
    torch.manual_seed(1)
    given = {name: torch.randn(tensor.shape) for name, tensor in peft_tensors(run.trainee, published).items()}
    take_peft_tensors(run.trainee, given, published)
    taken = peft_tensors(run.trainee, published)
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in given)
    assert run.trainee.flat.count_nonzero() == len(run.trainee.flat)
    run.close()


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_training_goes_on_as_pefts_would(family: str, tmp_path: Path) -> None:
    """Its first step has the loss of the adapter that it starts from, and every step is PEFT's."""
    found = base(family, tmp_path / "model")
    rows = examples(found.ours, 4)
    first = trained(found, rows, tmp_path / "first", settings(found))
    start_of(tmp_path / "second", first)
    run = trainer(found, rows, tmp_path / "second", settings(found, start="x", seed=9))
    twin = PeftTwin(found, run.trainee)
    assert any(tensor.abs().max() > 0 for name, tensor in twin.tensors().items() if ".lora_B." in name)
    drive(run.run())
    run.close()
    steps = [event for event in run.events if isinstance(event, StepDone)]
    assert len(steps) == 4
    for number, step in enumerate(steps):
        loss, norm = twin.step([rows[row] for row in run.order.rows_of(number)])
        assert step.loss == pytest.approx(loss, abs=1e-4)
        assert step.norm == pytest.approx(norm, rel=2e-3, abs=1e-4)


def test_of_preferences_the_reference_is_where_training_started(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows = []
    for n in range(3):
        pictures = [(24, 32)] * (n % 3)
        rows += [example(found.ours, 5 * n, length + n, pictures, labels=4) for length in (14, 17)]
    first = trained(found, rows, tmp_path / "first", settings(found, learning_rate=1e-2))
    start_of(tmp_path / "second", first)
    asked = settings(found, start="x", method="dpo", beta=0.3, batch_size=3)
    run = trainer(found, rows, tmp_path / "second", asked, together=2)
    twin = PeftTwin(found, run.trainee)
    reference = copy.deepcopy(twin)
    drive(run.run())
    run.close()
    for event, step in zip((e for e in run.events if isinstance(e, StepDone)), range(4), strict=True):
        margins = []
        for number in run.order.rows_of(step):
            pair = rows[2 * number : 2 * number + 2]
            now, before = ([-model.losses(one).sum() for one in pair] for model in (twin, reference))
            margins.append(0.3 * (now[0] - now[1] - (before[0] - before[1]).detach()))
        loss = -F.logsigmoid(torch.stack(margins)).mean()
        assert event.loss == pytest.approx(loss.item(), abs=1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in twin.model.parameters() if p.requires_grad], 1.0)
        twin.optimizer.step()
        twin.optimizer.zero_grad()


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows = examples(found.ours, 4)
    first = trained(found, rows, tmp_path / "first", settings(found))
    asked = settings(found, start="x", save_every=2)
    ends = []
    for name, stop in (("whole", False), ("stopped", True)):
        start_of(tmp_path / name, first)
        run = trainer(found, rows, tmp_path / name, asked)
        if stop:
            pieces = run.run()
            while run.progress.step < 2:
                next(pieces)
            run.stop("paused")
            drive(pieces)
            run.close()
            run = trainer(found, rows, tmp_path / name, asked)
            assert run.resume()
        drive(run.run())
        run.close()
        ends.append(run.trainee.flat.clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("fault", ["absent", "other", "shape", "damaged"])
def test_an_adapter_that_does_not_fit_is_a_sentence(fault: str, tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows = examples(found.ours, 2)
    if fault != "absent":
        start_of(tmp_path / "run", trained(found, rows, tmp_path / "first", settings(found, max_steps=1)))
        path = tmp_path / "run" / START / WEIGHTS
        tensors = load_file(path)
        name = min(tensors)
        if fault == "other":
            tensors[name.replace("lora_A", "lora_X")] = tensors.pop(name)
        elif fault == "shape":
            tensors[name] = tensors[name][:2].clone()
        save_file(tensors, path)
        if fault == "damaged":
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingFailed, match="the adapter that training starts from cannot be read"):
        trainer(found, rows, tmp_path / "run", settings(found, start="x"))
