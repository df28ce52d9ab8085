"""Steps of whole models as bench/engine.py times them: of the batch that a row names, and only those that succeed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import engine
import entry_points
import pytest
import rows
import torch
from device import Device
from engine import Decoding, Wrong
from gpu_plan import CEILINGS, FORMS, QWEN_2B, StepForm, decode_row, model_rows
from random_model import RandomModel
from stage import Given

from opsin_server.ipc.messages import Sampling

BENCH = Path(engine.__file__).parent


CAPTURED, EAGER = FORMS[:2]


@pytest.fixture(scope="module")
def made() -> RandomModel:
    return RandomModel(QWEN_2B, torch.device("cpu"), torch.float32, "tiny")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_sequence_decodes_in_every_timed_step(made: RandomModel, form: StepForm) -> None:
    """Prompts are taken in over many steps, in which the first ones answer already; none may be done meanwhile."""
    decoding = Decoding(made, batch=5, text=60, edge=0, steps=4)
    generated = [s.generated for s in decoding.engine.sequences.values()]
    assert max(generated) - min(generated) >= 2
    ahead = decoding.engine.stats().steps_ahead
    took, parts = decoding.timed(4, form)
    assert (decoding.engine.stats().steps_ahead - ahead >= 4) is form.ahead
    assert len(took) == 4
    assert len(decoding.engine.sequences) == 5
    assert [s.generated for s in decoding.engine.sequences.values()] == [n + 4 for n in generated]
    assert {"schedule", "batch", "model", "sample", "advance"} <= parts.keys()


def test_a_step_that_fails_is_a_failed_row_and_no_fast_one(made: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(made, batch=2, text=9, edge=0, steps=4)

    def broken(batch: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decoding.engine.runner, "run", broken)
    with pytest.raises(Wrong, match="a step failed: the engine could not compute"):
        decoding.timed(4, EAGER)


def test_a_row_after_a_failed_one_has_an_engine_of_its_own(
    made: RandomModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Given(argparse.Namespace(), Device(tiny=True), rows.Rows(tmp_path / "rows.jsonl", "x"), time.time() + 60)
    timed, calls = Decoding.timed, []

    def first_fails(self: Decoding, steps: int, form: StepForm) -> object:
        calls.append(self)
        if len(calls) == 1:
            self.engine.cancel(next(iter(self.engine.sequences)))
        return timed(self, steps, form)

    monkeypatch.setattr(Decoding, "timed", first_fails)
    engine.decode(run, made, 8)
    lines = rows.read(run.rows.path)
    assert list(rows.failures(lines)) == [decode_row(QWEN_2B, 8, CAPTURED)]
    assert list(rows.succeeded(lines)) == [decode_row(QWEN_2B, 8, form) for form in FORMS[1:]]


def test_a_batch_that_shrinks_is_no_measurement(made: RandomModel) -> None:
    decoding = Decoding(made, batch=2, text=9, edge=0, steps=4)
    decoding.engine.cancel(next(iter(decoding.engine.sequences)))
    with pytest.raises(Wrong, match="a step gave 1 of 2 tokens"):
        decoding.timed(4, CAPTURED)


def test_steps_that_were_launched_anew_are_not_called_captured(made: RandomModel) -> None:
    decoding = Decoding(made, batch=2, text=9, edge=0, steps=4)
    assert decoding._graphs is not None
    decoding._graphs.can_replay = lambda batch, memory: False  # type: ignore[method-assign]
    with pytest.raises(Wrong, match="0 of 4 steps were captured ones"):
        decoding.timed(4, CAPTURED)
    decoding._graphs = None
    with pytest.raises(Wrong, match="could not be captured"):
        decoding.timed(4, CAPTURED)


def test_a_step_cannot_be_faster_than_its_bytes_or_its_operations(made: RandomModel) -> None:
    weights = 4 * sum(p.numel() for p in made.model.decoder.parameters() if p.dim() == 2)
    slow_memory, slow_arithmetic = (1e6, 1e18), (1e18, 1e6)
    assert made.floor(1, 0, 0, 1, slow_memory) == pytest.approx(1e3 * weights / 1e6)
    cached = made.floor(1, 100, 0, 1, slow_memory) - made.floor(1, 0, 0, 1, slow_memory)
    decoder = made.spec.decoder
    assert cached == pytest.approx(1e3 * 100 * decoder.own_layers * 2 * decoder.kv_heads * decoder.head_dim * 4 / 1e6)
    one, many = (made.floor(n, 0, 0, n, slow_arithmetic) for n in (1, 50))
    assert many == pytest.approx(50 * one, rel=0.01)


def test_published_widths_stay_in_a_shallow_model() -> None:
    from random_model import files

    whole, shallow = (files(QWEN_2B, size).config for size in ("whole", "shallow"))
    assert shallow["num_hidden_layers"] == 2
    assert shallow["vision_config"]["depth"] == 1
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    assert all(shallow[name] == whole[name] for name in same)


def test_a_rehearsal_brings_the_planned_rows(tmp_path: Path) -> None:
    """On a machine that has only a copy of the tree, where families are found by what entry_points.py writes."""
    entry_points.write(tmp_path / "site")
    tree = [str(BENCH.parent / name) for name in ("kernels", "plugins", "server", "clients", "bench")]
    path = tmp_path / "rows.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *tree]), "OMP_NUM_THREADS": "1"}
    for line in (["ceilings.py"], ["engine.py", QWEN_2B]):
        command = [sys.executable, str(BENCH / line[0]), *line[1:], "--tiny", "--rows", str(path)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert set(rows.succeeded(rows.read(path))) == {*CEILINGS.rows, *model_rows(QWEN_2B)}


def test_entry_points_are_those_of_the_project(tmp_path: Path) -> None:
    from importlib.metadata import Distribution

    entry_points.write(tmp_path)
    (folder,) = tmp_path.glob("opsin-*.dist-info")
    written = {(p.group, p.name, p.value) for p in Distribution.at(folder).entry_points}
    installed = {
        (p.group, p.name, p.value) for p in Distribution.from_name("opsin").entry_points if p.group != "console_scripts"
    }
    assert written == {point for point in installed if point[0].startswith("opsin.")}
    groups = ("architectures", "vision_encoders", "fusions", "dual_encoders")
    assert {group for group, _, _ in written} == {f"opsin.{group}" for group in groups}


def test_greedy_requests_are_answered_to_their_last_token(made: RandomModel) -> None:
    """What the benchmark relies on: nothing ends an answer early."""
    running = made.engine(1, 40, captured=False)
    running.submit(*made.request(5, (), 9, Sampling(temperature=0.0)))
    tokens = 0
    while running.busy:
        tokens += sum(len(output.ids) for output in engine.stepped(running))
    assert tokens == 9
