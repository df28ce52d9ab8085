"""A run from its first row to its last checkpoint, and what it goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from opsin_plugins.blocks.adapter_slots import AdapterSlots
from opsin_plugins.blocks.trained_projectors import TrainedProjectors
from opsin_plugins.blocks.trainee_lora import TraineeLora
from opsin_plugins.conformance.batches import Adapters, whole
from opsin_plugins.loading.published_projector import PublishedProjector
from opsin_server.engine.running.adapter_loader import SlotShape, read_adapter
from opsin_server.engine.training.memory import MemoryPool
from opsin_server.engine.training.trained_model import TrainingFailed
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.messages import AdapterRef
from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, StepDone, TrainingEnded
from opsin_server.ipc.training_settings import TrainingSettings
from support import peft, tiny
from support.inputs import their_inputs
from support.training import MEMORY, Base, Example, LocalRows, base, drive, examples, shape_of

FAMILIES = [name for name in tiny.FAMILIES if name != "qwen"]
ALL = ("vision", "projector", "language", "cross")


def trainer(found: Base, folder: Path, rows: list[Example], valid: list[Example] = (), **settings: Any) -> Trainer:  # type: ignore[assignment]
    defaults = {
        "modules": found.of(*ALL),
        "rank": 4,
        "learning_rate": 3e-3,
        "vision_rate": 1.0,
        "batch_size": 2,
        "epochs": 2,
    }
    asked = TrainingSettings(**{**defaults, **settings})
    return Trainer(found.trained, asked, LocalRows(rows, valid), folder, MemoryPool(MEMORY), shape_of([*rows, *valid]))


def finished(run: Trainer) -> TrainingEnded:
    drive(run.run())
    run.close()
    (end,) = [event for event in run.events if isinstance(event, TrainingEnded)]
    return end


class Trainees:
    """All rows are the trainee's."""

    def __init__(self, run: Trainer) -> None:
        self._run = run

    def lora(self, prompts: Sequence[int], rows: Sequence[int]) -> TraineeLora:
        return self._run.trainee.lora(None)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_is_what_is_served_and_what_peft_reads(family: str, tmp_path: Path) -> None:
    """The trainer's own logits, those of a slot with the files read as any adapter's, and PEFT's on transformers."""
    found = base(family, tmp_path / "model")
    rows = examples(found.ours)
    whole_projector = isinstance(found.trained.projector, PublishedProjector)
    parts = ("vision", "language", "cross") if whole_projector else ALL
    run = trainer(found, tmp_path / "run", rows, modules=found.of(*parts), full_projector=whole_projector)
    end = finished(run)
    assert end.status == "succeeded"
    prompts = [one.prompt for one in rows]
    with torch.no_grad():
        base_only = whole(found.ours.model, prompts)
    trained, shapes = None, {}
    if whole_projector:
        trained = TrainedProjectors(found.ours.model, 1, torch.device("cpu"), torch.float32)
        shapes = {f"projector.{k}": shape for k, shape in found.ours.spec.projector.parameters().items()}
    slots = AdapterSlots(found.trained.linears, 1, 4, projectors=trained)
    limits = peft.base_of(found.directory, 4)
    converted = peft.converted(Path(end.checkpoint), limits)
    assert converted.tensors_read == 2 * len(run.trainee.modules) + len(run.trainee.projector)
    file = tmp_path / "engine.safetensors"
    converted.write(file)
    ref = AdapterRef(hashlib.sha256(file.read_bytes()).digest(), str(file))
    loaded = read_adapter(ref, SlotShape(found.trained.linears, 4, torch.float32, shapes))
    slots.load(1, loaded.weights)
    with torch.no_grad():
        trainees = whole(found.ours.model, prompts, Trainees(run))  # type: ignore[arg-type]
        served = whole(found.ours.model, prompts, Adapters(slots, [1] * len(prompts)))
    theirs = PeftModel.from_pretrained(found.theirs, end.checkpoint).eval()
    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = theirs.base_model.model(**their_inputs(found.ours.spec, prompt)).logits[0]
        assert torch.allclose(trainees[number], expected, atol=1e-4)
        assert torch.allclose(served[number], expected, atol=1e-4)
        assert (trainees[number] - base_only[number]).abs().max() > 1e-3


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows, valid = examples(found.ours, 7), examples(found.ours, 3, seed=100)
    settings = {"dropout": 0.1, "warmup": 2, "save_every": 1, "evaluate_every": 3, "epochs": 3}
    once = trainer(found, tmp_path / "once", rows, valid, **settings)
    finished(once)
    trace = [(e.step, e.loss, e.norm, e.rate) for e in once.events if isinstance(e, StepDone)]
    told: list[tuple[float, ...]] = []
    for pieces in (0, 40, 111, 7, 260, 10**6):
        run = trainer(found, tmp_path / "often", rows, valid, **settings)
        resumed = run.resume()
        assert resumed is bool(told)
        going = run.run()
        for _ in range(pieces):
            if next(going, None) is None:
                break
        going.close()
        run.close()
        told += [(e.step, e.loss, e.norm, e.rate) for e in run.events if isinstance(e, StepDone)]
    assert {step[0]: step for step in told} == {step[0]: step for step in trace}
    assert torch.equal(run.trainee.flat, once.trainee.flat)
    assert torch.equal(run.optimizer.second, once.optimizer.second)
    evaluated = [(e.step, e.loss) for e in once.events if isinstance(e, Evaluated)]
    assert [step for step, _ in evaluated] == [3, 6, 9, 12]


def test_a_run_goes_on_from_no_later_step_than_all_was_heard_of(tmp_path: Path) -> None:
    """What is told of a checkpoint that it goes on from is told again: who heard it may have died then."""
    found = base("qwen2_vl", tmp_path / "model")
    rows = examples(found.ours, 4)
    settings = {"save_every": 1, "epochs": 6}
    once = trainer(found, tmp_path / "run", rows, **settings)
    finished(once)
    again = trainer(found, tmp_path / "run", rows, **settings)
    last = once.progress.step
    assert again.resume(known=last - 1)
    assert again.events == [CheckpointSaved(last - 1, str(tmp_path / "run" / f"checkpoint-{last - 1}"))]
    assert [path.name for path in again.checkpoints.all] == [f"checkpoint-{last - 2}", f"checkpoint-{last - 1}"]
    finished(again)
    assert torch.equal(again.trainee.flat, once.trainee.flat)
    nothing = trainer(found, tmp_path / "run", rows, **settings)
    assert not nothing.resume(known=0)
    nothing.close()


def test_a_checkpoint_is_told_of_before_the_next_one_is_due(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    run = trainer(found, tmp_path / "run", examples(found.ours, 4), save_every=2, epochs=4)
    going = run.run()
    while not any(isinstance(event, CheckpointSaved) for event in run.events):
        next(going)
        if run._writing is not None:
            run._writing.result()
    assert [event.step for event in run.events if isinstance(event, StepDone)] == [1, 2, 3]
    going.close()
    run.close()


@pytest.mark.parametrize("pieces", [1, 60, 133, 210])
def test_a_process_that_ends_leaves_the_steps_that_were_made(pieces: int, tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows = examples(found.ours, 7)
    once = trainer(found, tmp_path / "once", rows, epochs=3)
    finished(once)
    broken = trainer(found, tmp_path / "broken", rows, epochs=3)
    going = broken.run()
    for _ in range(pieces):
        next(going)
    while broken.updating:
        next(going)
    made = broken.progress.step
    going.close()
    broken.save_now()
    broken.close()
    again = trainer(found, tmp_path / "broken", rows, epochs=3)
    assert again.resume() is (made > 0)
    assert again.progress.step == made
    finished(again)
    assert torch.equal(again.trainee.flat, once.trainee.flat)


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(tmp_path: Path) -> None:
    found = base("qwen2_vl", tmp_path / "model")
    rows = examples(found.ours, 4)
    finished(trainer(found, tmp_path / "run", rows))
    with pytest.raises(TrainingFailed, match="checkpoint-4 is of another run: learning_rate, rank differ"):
        trainer(found, tmp_path / "run", rows, rank=2, learning_rate=1e-3).resume()
    with pytest.raises(TrainingFailed, match="rows differ"):
        trainer(found, tmp_path / "run", rows[:3]).resume()
