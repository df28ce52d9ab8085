"""A run fits into what training has, is made to fit, or is refused with the numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opsin_server.engine.training.memory import EFFICIENT, DoesNotFit, LargestRow, MemoryPool, RowBytes, TrainingMemory
from opsin_server.engine.training.trainer import Trainer
from opsin_server.ipc.training_settings import TrainingSettings
from support.training import Base, LocalRows, base, drive, examples, shape_of

RESERVE = 100 * 2**20
SIZES = TrainingMemory(fixed=10 * 2**20, language=RowBytes(1000, 3000, 40_000), vision=RowBytes(500, 800, 9000))


def test_what_is_left_keeps_pieces_and_pictures() -> None:
    settled = SIZES.settle(2048, LargestRow(300, 200), RESERVE)
    assert 300 < settled.micro_batch_tokens < 2048
    size = settled.micro_batch_tokens
    assert settled.kept >= size * (40_000 + 9000 * 200 / 300)
    least = SIZES.needs(size, size * 200 // 300)
    assert least + settled.kept + 2 * settled.store <= RESERVE + 2 * 2**20


def test_a_micro_batch_is_made_smaller_until_it_fits() -> None:
    settled = SIZES.settle(100_000, LargestRow(300, 200), RESERVE)
    assert 300 <= settled.micro_batch_tokens < 100_000
    assert SIZES.needs(settled.micro_batch_tokens, settled.micro_batch_tokens * 200 // 300) <= RESERVE
    without = SIZES.settle(100_000, LargestRow(300, 0), RESERVE)
    assert settled.micro_batch_tokens < without.micro_batch_tokens < 100_000


def test_with_too_little_for_all_pieces_a_micro_batch_is_as_small_as_it_may_be() -> None:
    """So that as many as can be are kept."""
    settled = SIZES.settle(1024, LargestRow(300, 200), 28 * 2**20)
    assert settled.micro_batch_tokens == 300
    assert 0 < settled.kept < 300 * 46_000
    assert SIZES.settle(1024, LargestRow(10, 0), 22 * 2**20).micro_batch_tokens == EFFICIENT
    assert 10 <= SIZES.settle(1024, LargestRow(10, 0), 12 * 2**20 + 2**19).micro_batch_tokens < EFFICIENT


def test_a_row_that_does_not_fit_is_refused_with_what_would_do() -> None:
    with pytest.raises(DoesNotFit) as refused:
        SIZES.settle(64, LargestRow(20_000, 0), RESERVE)
    assert f"20,000 tokens and 0 patches, needs {refused.value.least:,} bytes" in str(refused.value)
    enough = SIZES.settle(64, LargestRow(20_000, 0), refused.value.least)
    assert enough.micro_batch_tokens == 20_000


def test_a_run_has_its_part_of_the_memory_or_what_it_needs_where_that_is_there() -> None:
    pool = MemoryPool(100, 4)
    assert [pool.take(10), pool.take(40)] == [25, 40]
    assert pool.take(60) == 35  # which is too little
    pool.give_back(35)
    assert [pool.take(30), pool.take(5)] == [30, 5]
    for taken in (25, 40, 30, 5):
        pool.give_back(taken)
    assert pool.take(100) == 100


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("family", "factor"), [("qwen2_vl", 1), ("qwen2", 3)])
def test_the_process_takes_no_more_than_the_run_was_granted(family: str, factor: int) -> None:
    """In a process of its own, whose peak is its own; with only what a run must have, most of that is taken."""
    tests = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    command = [sys.executable, "-m", "support.train_within", family, str(factor)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(done.stdout)
    assert said["took"] <= said["granted"]
    assert factor > 1 or said["took"] > said["granted"] / 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return base("qwen2_vl", tmp_path_factory.mktemp("model"))


def trainer(found: Base, folder: Path, memory: int) -> Trainer:
    rows = examples(found.ours, 5)
    asked = TrainingSettings(modules=found.of("vision", "language"), rank=4, batch_size=5, epochs=2)
    return Trainer(found.trained, asked, LocalRows(rows), folder, MemoryPool(memory), shape_of(rows))


def test_with_less_memory_the_same_is_learned_from_less_that_is_kept(found: Base, tmp_path: Path) -> None:
    much = trainer(found, tmp_path / "much", 2**30)
    drive(much.run())
    with pytest.raises(DoesNotFit) as refused:
        drive(trainer(found, tmp_path / "none", 2**20).run())
    little = trainer(found, tmp_path / "little", refused.value.least + 2**17)
    drive(little.run())
    assert little._kept.most <= 2**17 < much._kept.most
    assert (little.trainee.flat - much.trainee.flat).abs().max() < 1e-4
    for run in (much, little):
        run.close()
